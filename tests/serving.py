"""`tilth annotate` as a process of its own, for tests that kill it or come from many sides at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

URL = re.compile(r"https?://\S+")


def beside_us() -> dict[str, str]:
    """The environment in which another process imports what we import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Served:
    """A running campaign: its address and the manager's token."""

    def __init__(self, source: Path, settings: Path) -> None:
        self.log = source.with_suffix(".log")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tilth", "annotate", str(source), str(settings), "--port", "0"],
            stdout=self.log.open("w"), stderr=subprocess.STDOUT, env=beside_us(),
        )  # fmt: skip
        self.base, _, self.token = self._link().rpartition("/login/")

    def _link(self) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := URL.search(self.log.read_text().replace("\n", "")):
                return found[0]
            time.sleep(0.1)
        raise AssertionError(f"it does not serve: {self.log.read_text()}")

    def kill(self) -> None:
        """As kill -9 does: nothing is tidied up."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=60)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.kill()
