"""How fast a server is asked, and how long to wait before it is asked again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

FIRST_WAIT, LONGEST_WAIT, LONGEST_ORDER = 0.5, 30.0, 600.0


class Limiter:
    """Spreads what is begun evenly over time. Used from one event loop."""

    def __init__(self, per_minute: float | None) -> None:
        self.per_minute, self.free_at = per_minute, 0.0

    async def wait(self, amount: float = 1.0) -> None:
        """Return when `amount` may be begun."""
        if self.per_minute is None:
            return
        now = time.monotonic()
        start = max(now, self.free_at)
        self.spend(amount, start)
        await asyncio.sleep(start - now)

    def spend(self, amount: float, start: float | None = None) -> None:
        """Count `amount` without waiting, below zero to give some back."""
        if self.per_minute is not None:
            self.free_at = (self.free_at if start is None else start) + 60.0 * amount / self.per_minute


def backoff(attempt: int, ordered: float) -> float:
    """Seconds before attempt `attempt` (from 1), at least what the server `ordered`; doubling, with jitter.

    Many workers that failed at one instant must not come back at one instant (Brooker 2015, "full jitter").
    """
    return ordered + random.uniform(0.0, min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (attempt - 1)))


def ordered_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a server's answer says to wait, 0 if it does not; never more than ten minutes."""
    said = headers.get("retry-after", "")
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        else:
            seconds = float(said) if said.replace(".", "", 1).isdigit() else _until(said)
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST_ORDER)


def _until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time() if date else 0.0
