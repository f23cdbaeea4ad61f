"""What stands between Tilth and an object store: it counts requests, and answers some as a store under load does."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import fsspec

#: by which environment variable each protocol is led elsewhere
LEADS = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}
#: what a store says that is asked too often
BUSY = {
    "s3": (503, "application/xml", b"<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"),
    "gs": (429, "application/json", b'{"error": {"code": 429, "message": "rateLimitExceeded"}}'),
}
#: what S3 says of a conditional write beside which another ended
CONFLICT = (409, "application/xml", b"<Error><Code>ConditionalRequestConflict</Code><Message>Again.</Message></Error>")
_HOPS = ("connection", "expect", "host", "keep-alive", "transfer-encoding", "date", "server")


@dataclass(frozen=True)
class Asked:
    """One request, whatever became of it."""

    method: str
    path: str
    sent: int
    query: str = ""


#: what to do with a request, given how many came before it: None, or a fault
#:   nothing is done: busy, refused as too many; conflict, refused as another write ended beside it; cut, hung up
#:   it is done: late, and then refused; lost, and then hung up; half, and hung up within the answer
Plan = Callable[[Asked, int], str | None]


def calm(asked: Asked, before: int) -> str | None:
    return None


def stormy(seed: int, share: float, faults: tuple[str, ...] = ("busy", "cut", "late", "lost", "half")) -> Plan:
    """Faults for a share of all requests, drawn from a seed."""
    drawn = random.Random(seed)
    return lambda asked, before: drawn.choice(faults) if drawn.random() < share else None


@dataclass
class Between:
    """A proxy before the store at `upstream`."""

    protocol: str
    upstream: str
    plan: Plan = calm
    seen: list[Asked] = field(default_factory=list)
    faults: list[tuple[str, Asked]] = field(default_factory=list)
    received: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, asked: Asked) -> str | None:
        with self.lock:
            fault = self.plan(asked, len(self.seen))
            self.seen.append(asked)
            if fault:
                self.faults.append((fault, asked))
        return fault


@contextmanager
def between(store: Callable[[], AbstractContextManager[str]], plan: Plan = calm) -> Iterator[tuple[str, Between]]:
    """An object store's bucket that is reached by way of a proxy, and that proxy."""
    with store() as bucket:
        protocol = bucket.partition(":")[0]
        proxy = Between(protocol, os.environ[LEADS[protocol]], plan)
        with _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"proxy": proxy})) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            os.environ[LEADS[protocol]] = f"http://127.0.0.1:{server.server_port}"
            fsspec.get_filesystem_class(protocol).clear_instance_cache()
            yield bucket, proxy
            server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Between

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        fault = self.proxy.fault(Asked(self.command, unquote(url.path), len(body), url.query))
        if fault == "busy":
            self._answer(*BUSY[self.proxy.protocol])
        elif fault == "conflict":
            self._answer(*CONFLICT)
        elif fault == "cut":
            self._cut()
        else:
            self._forward(body, fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _forward(self, body: bytes, fault: str | None) -> None:
        upstream = HTTPConnection(self.proxy.upstream.removeprefix("http://"))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOPS}
        host = self.headers["Host"]  # where the store says that an upload goes on
        upstream.request(self.command, self.path, body or None, {**headers, "Host": host, "Connection": "close"})
        found = upstream.getresponse()
        data = found.read()
        upstream.close()
        with self.proxy.lock:
            self.proxy.received += len(data)
        if fault == "late":
            self._answer(*BUSY[self.proxy.protocol])
        elif fault == "lost" or (fault == "half" and len(data) < 2):
            self._cut()
        else:
            kept = {name: value for name, value in found.getheaders() if name.lower() not in _HOPS}
            if self.command != "HEAD":
                kept["Content-Length"] = str(len(data))
            self._send(found.status, kept, data[: len(data) // 2] if fault == "half" else data)
            if fault == "half":
                self._cut()

    def _answer(self, status: int, kind: str, data: bytes) -> None:
        self._send(status, {"Content-Type": kind, "Content-Length": str(len(data))}, data)

    def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: object) -> None:
        pass
