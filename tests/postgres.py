"""A PostgreSQL of a test's own: started in a folder that goes with it, asked through its socket alone."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from processes import until


def program(name: str) -> str | None:
    """Where a program of PostgreSQL lies; distributions keep some of them out of the path."""
    known = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(known[-1]) if known else shutil.which(name)


class Postgres:
    """A server. It never runs as root: there it takes the account `postgres`, or `nobody`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self.account: dict[str, Any] = {}
        if os.getuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self.account = {"user": "postgres" if "postgres" in names else "nobody"}
            shutil.chown(self.folder, self.account["user"])
        self.numbers = itertools.count()
        self._run(program("initdb"), "-D", "data", "-U", "tilth", "-A", "trust", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        command = [
            program("postgres"),
            "-D",
            str(self.folder / "data"),
            "-k",
            str(self.folder),
            "-c",
            "listen_addresses=",
        ]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self.account)
        assert until(self._answers, 60), (self.folder / "log").read_text()

    def database(self) -> str:
        """The URL of a new, empty one."""
        name = f"campaign{next(self.numbers)}"
        self._run(program("createdb"), "-h", str(self.folder), "-U", "tilth", name)
        return f"postgresql+psycopg://tilth@/{name}?host={self.folder}"

    def crash(self) -> None:
        """As kill -9 does; what the server had started notices it and ends."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        asked = [program("psql"), "-h", str(self.folder), "-U", "tilth", "-c", "SELECT 1", "postgres"]
        return subprocess.run(asked, cwd=self.folder, capture_output=True, check=False).returncode == 0

    def _run(self, *command: Any) -> None:
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, **self.account)
