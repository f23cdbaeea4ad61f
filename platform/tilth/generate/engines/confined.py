"""Rendering of templates that nobody vouches for: in a child process with limits, replaced when one brings it down."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilth.errors import StageError

_SCRIPT = Path(__file__).with_name("rendering.py")


@dataclass(frozen=True)
class Job:
    """A template by its name, what it may name, and the seed of its random choices."""

    template: str
    values: Mapping[str, Any]
    seed: int = 0


@dataclass(frozen=True)
class Rendered:
    """The texts between "|||" and the answer choices, or a fault as `name: detail`: missing, failed or runaway."""

    parts: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    fault: str | None = None


class Confined:
    """Renders jobs in a child process. Thread-safe; the child ends with its owner.

    `templates` are {name: {jinja, answer_choices}}; `limits` hold seconds (of CPU), characters (of output) and
    memory_mib for each render.
    """

    def __init__(self, templates: Mapping[str, Mapping[str, str | None]], limits: Mapping[str, float]) -> None:
        self.setting = {"templates": {name: dict(item) for name, item in templates.items()}, **limits}
        self.lock = threading.Lock()
        self.child: subprocess.Popen[bytes] | None = None

    def __call__(self, jobs: Sequence[Job]) -> list[Rendered]:
        """One answer for each job, in order. StageError where the child cannot be started."""
        with self.lock:
            return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Rendered:
        line = {"template": job.template, "values": dict(job.values), "seed": job.seed}
        answer = self._ask(json.dumps(line, default=str).encode())
        if answer is None:
            return Rendered(fault="runaway: it had to be ended, for the time or memory that it took")
        choices = answer.get("choices")
        return Rendered(
            tuple(answer.get("parts", ())), None if choices is None else tuple(map(str, choices)), answer.get("fault")
        )

    def _ask(self, line: bytes) -> dict[str, Any] | None:
        """The child's answer; None where it died of the question, and the next gets another child."""
        if self.child is None:
            self.child = self._started()
        said = _exchange(self.child, line)
        if not said.endswith(b"\n"):
            self._end(self.child)
            self.child = None
            return None
        found: dict[str, Any] = json.loads(said)
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-I", str(_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}
        )
        if _exchange(child, json.dumps(self.setting).encode()) != b"ready\n":
            self._end(child)
            raise StageError(
                f"templates: the process that renders them does not start within {self.setting['memory_mib']} MiB; "
                "raise limits.memory_mib"
            )
        return child

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # of a line that it never read
                    pipe.close()

    def __del__(self) -> None:
        if self.child is not None:
            self._end(self.child)


def _exchange(child: subprocess.Popen[bytes], line: bytes) -> bytes:
    """The line that the child answers to `line`; nothing, or a part of one, where it died."""
    if child.stdin is None or child.stdout is None:
        raise StageError("templates: the process that renders has no pipes")
    try:
        child.stdin.write(line + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        return b""
    return child.stdout.readline()
