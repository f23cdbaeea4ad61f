"""A hub on this machine: of one model, to be looked up and downloaded, and of datasets, to be looked up."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves `files` as the model org/tiny at COMMIT and `cards` of datasets by their names.

    `asked` are the paths of all requests, `parameters` what the hub knows of the model's safetensors.
    """

    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012
    parameters: dict[str, int] = {}  # noqa: RUF012
    cards: dict[str, dict[str, object]] = {}  # noqa: RUF012

    def do_GET(self):
        self.asked.append(self.path)
        name = self.path.rsplit("/", 1)[-1]
        if self.path.startswith("/api/models/org/tiny/tree/"):
            self.answer_json([{"type": "file", "path": name, **self.facts(name)} for name in self.files])
        elif self.path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": name} for name in self.files]
            known = {"parameters": self.parameters, "total": sum(self.parameters.values())}
            self.answer_json({"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "safetensors": known})
        elif self.path.startswith("/api/datasets/") and name.partition("?")[0] in self.cards:
            self.answer_json({"id": name, "sha": COMMIT, "cardData": self.cards[name.partition("?")[0]]})
        elif "/org/tiny/resolve/" in self.path and name in self.files:
            tag = self.facts(name)["oid"]
            self.answer(200, self.files[name], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def facts(self, name: str) -> dict[str, object]:
        return {"size": len(self.files[name]), "oid": hashlib.sha1(self.files[name]).hexdigest()}

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Silent."""


@contextmanager
def serving() -> Iterator[str]:
    """The endpoint, for as long as it is served."""
    Hub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
