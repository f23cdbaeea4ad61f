"""A small server with OpenAI's API on the loopback that fails on demand, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

#: what to do with a request: (its number from 0, how often this question came before, its body) → a fault or None
Plan = Callable[[int, int, dict[str, Any]], str | None]
STATUS = {
    "400": "too long",
    "401": "no such key",
    "403": "not for you",
    "404": "no such model",
    "429": "slow",
    "500": "",
}


class FaultyServer:
    """Answers "<question> <seed>.<sample>"; as a context manager it serves at `url`.

    Faults: a status of STATUS ("429" with Retry-After), "hang", "half" (half a JSON body of full length), "cut" (the
    connection ends within the body), "html", "empty" (no choices), "one" (a single sample, whatever n is asked for),
    "length" and "content_filter" (how the answer ended), "echo_key" (a 401 that repeats the key).
    """

    def __init__(self, plan: Plan = lambda number, before, body: None, retry_after: str = "0.2") -> None:
        self.plan, self.retry_after = plan, retry_after
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.most_at_once = self._now = 0
        self.let_go = threading.Event()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> FaultyServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.let_go.set()
        self._http.shutdown()
        self._http.server_close()

    def asked(self, question: str) -> int:
        """How many requests had this question."""
        return sum(_question(body) == question for body in self.bodies)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            number, before = len(self.bodies), self.asked(_question(body))
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            self.paths.append(request.path)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            self._give(request, body, self.plan(number, before, body))
        finally:
            with self._lock:
                self._now -= 1

    def _give(self, request: BaseHTTPRequestHandler, body: dict[str, Any], fault: str | None) -> None:
        if fault == "hang":
            self.let_go.wait(30)
            request.close_connection = True
        elif fault == "echo_key":
            _send(request, 401, json.dumps({"error": {"message": f"bad key {request.headers['Authorization']}"}}))
        elif fault in STATUS:
            headers = {"Retry-After": self.retry_after} if fault == "429" else {}
            _send(request, int(fault), json.dumps({"error": {"message": STATUS[fault]}}), **headers)
        elif fault == "html":
            _send(request, 200, "<html>welcome to the proxy</html>", kind="text/html")
        else:
            text = json.dumps(_reply(body, fault))
            _send(request, 200, text[: len(text) // 2] if fault == "half" else text, cut=fault == "cut")


def _question(body: dict[str, Any]) -> str:
    found: str = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    return found


def _reply(body: dict[str, Any], fault: str | None) -> dict[str, Any]:
    count = 1 if fault == "one" else 0 if fault == "empty" else body["n"]
    finish = fault if fault in ("length", "content_filter") else "stop"
    choices: list[dict[str, Any]] = []
    for index in range(count):
        text = f"{_question(body)} {body['seed']}.{index}"
        said = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        choices.append({"index": index, "finish_reason": finish, **said})
    return {"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 3 * count}}


def _send(
    request: BaseHTTPRequestHandler, status: int, text: str, kind: str = "application/json", cut: bool = False,
    **headers: str,
) -> None:  # fmt: skip
    data = text.encode()
    request.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(data[: len(data) // 2] if cut else data)
    request.wfile.flush()
    request.close_connection = cut
