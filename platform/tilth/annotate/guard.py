"""What keeps strangers out: tokens of forms, a limit on requests, headers that let a page do nothing but its work."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from time import monotonic
from urllib.parse import urlsplit

COOKIE = "tilth"
#: bytes of a form
LARGEST = 64 << 10
#: wrong tokens of one address in a minute
GUESSES = 10
MINUTE = 60.0
HEADERS = {
    # no inline script or style, nothing from elsewhere: what an item says cannot run even if it were not escaped
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # no-referrer would make browsers send `Origin: null` with every form
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def form_token(secret: str, cookie: str) -> str:
    """The token that a form of this browser must carry."""
    return hmac.new(secret.encode(), cookie.encode(), hashlib.sha256).hexdigest()


def is_ours(secret: str, cookie: str, token: str) -> bool:
    """Whether a form was made for this browser."""
    return bool(cookie) and hmac.compare_digest(
        form_token(secret, cookie).encode(), token.encode("utf-8", "surrogatepass")
    )


def same_origin(headers: Mapping[str, str], public: str | None = None) -> bool:
    """Whether a request comes from a page of this host, or of the `public` URL; true where the browser does not say."""
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    return origin is None or origin == public or urlsplit(origin).netloc == headers.get("host")


class Limiter:
    """At most `most` events of one name in a minute. Remembers `names` of them, the latest."""

    def __init__(self, most: int, names: int = 10_000) -> None:
        self.most, self.names = most, names
        self._events: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def full(self, name: str) -> bool:
        """Whether one more would be too many."""
        with self._lock:
            return len(self._recent(name)) >= self.most

    def allow(self, name: str) -> bool:
        """Count one more, unless it would be too many."""
        with self._lock:
            recent = self._recent(name)
            if len(recent) >= self.most:
                return False
            recent.append(monotonic())
            return True

    def _recent(self, name: str) -> deque[float]:
        events = self._events.setdefault(name, deque())
        self._events.move_to_end(name)
        while len(self._events) > self.names:
            self._events.popitem(last=False)
        while events and events[0] < monotonic() - MINUTE:
            events.popleft()
        return events
