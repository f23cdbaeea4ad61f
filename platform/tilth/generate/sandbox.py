"""A sandbox for Python that a model wrote.

    run_python("print(sum(range(4)))")              →  Outcome(ok=True, stdout="6\\n", …)
    run_python("def f(): pass", tests="assert f()") →  Outcome(ok=False, why="failed: AssertionError", …)

Each program gets a jail of its own, from Linux namespaces: no network, not even the loopback; no other processes; of
the machine's files only system libraries and the interpreter, read-only; a temporary folder in memory; an empty
environment; no privileges and no way to new ones. Packages are not visible: the standard library is all there is.
Time, memory, processes, files and output are limited, and what outlives its time is ended with all its children.

There is no weaker mode: where the machine does not permit namespaces, nothing is run (StageError). It is one kernel
that jail and machine share: against a program that attacks the kernel only a virtual machine helps.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from pydantic import Field

from tilth.config import Component
from tilth.errors import StageError

_JAIL = Path(__file__).with_name("engines") / "jail.py"
#: characters kept of what a program writes: the beginning of its output, the end of its errors
KEPT = 16_384
#: a busy machine makes a program slow, not wrong: by the clock it has this many times its seconds
_PATIENCE = 4
_START = 5


class Limits(Component):
    """What a program in the sandbox may use."""

    seconds: float = Field(5.0, gt=0, le=3600, description="CPU time of each process; four times that by the clock.")
    memory_mib: int = Field(512, ge=64, description="Memory of each process.")
    processes: int = Field(4, ge=1, le=256, description="Processes and threads at a time, its own included.")
    disk_mib: int = Field(16, ge=1, description="All that it writes to its folder, or to its output.")


@dataclass(frozen=True)
class Outcome:
    """What became of a program. `why` is None where `ok`, else `name: detail`: failed, time, memory, output, killed
    or unfinished."""

    ok: bool
    stdout: str
    stderr: str
    why: str | None = None


def run_python(code: str, *, tests: str = "", stdin: str = "", limits: Limits | None = None) -> Outcome:
    """Run a program, then `tests` in the same module; ok where it ended with 0 and its tests were run to their end.

    StageError where the machine does not give the sandbox. Thread-safe; starting takes some 50 ms.
    """
    limits = limits or Limits()
    # a program that ends itself before its tests did not pass them, nor does one that prints its source: the mark
    # stands in it backwards
    mark = f"tests done {secrets.token_hex(16)}" if tests else ""
    finish = f"\n\n{tests}\n\n__import__('os').write(1, b'{mark[::-1]}\\n'[::-1])\n" if tests else "\n"
    with tempfile.TemporaryFile() as spec, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        spec.write(_specified(code + finish, stdin, limits))
        spec.seek(0)
        report = _run(spec, limits, stdout, stderr)
        said, errors = _text(stdout), _text(stderr)
    why = _why(report, errors, limits) or (None if mark in said else "unfinished: it ended before its tests did")
    said = said.replace(f"\n{mark}", "") if mark else said
    return Outcome(why is None, said[:KEPT], errors[-KEPT:], why)


@cache
def require_sandbox() -> None:
    """StageError where the machine does not give the sandbox; to be called before a model is asked for programs."""
    outcome = run_python("print(1)", limits=Limits(seconds=30))
    if outcome.stdout != "1\n":
        raise StageError(f"the sandbox cannot run Python here: {outcome.why}; {outcome.stderr.strip()[-500:]}")


def _specified(program: str, stdin: str, limits: Limits) -> bytes:
    spec = {
        "program": program,
        "stdin": stdin,
        # not this environment's link to it, which the jail does not see
        "python": os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
        "prefix": os.path.realpath(sys.base_prefix),
        **limits.model_dump(),
        "seconds": math.ceil(limits.seconds),
    }
    return json.dumps(spec).encode()


def _run(spec: IO[bytes], limits: Limits, stdout: IO[bytes], stderr: IO[bytes]) -> str | None:
    """Start the jail and wait; what it reports, None where it had to be ended."""
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_JAIL), str(writing)],
                stdin=spec,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(writing,),
                env={},
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(writing)
        try:
            return _heard(report, time.monotonic() + limits.seconds * _PATIENCE + _START)
        finally:
            _end(process)


def _heard(report: IO[bytes], deadline: float) -> str | None:
    """All that the jail reports until it is gone; None where it is not gone by then."""
    waiting = select.poll()
    waiting.register(report, select.POLLIN)
    heard = b""
    while waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
        if not (part := os.read(report.fileno(), 4096)):
            return heard.decode("utf-8", "replace")
        heard += part
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the jail, and with it everything that was started in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _why(report: str | None, errors: str, limits: Limits) -> str | None:
    """The reason why a program did not end well; StageError where it was never started."""
    if report is None:
        return f"time: not done after {limits.seconds * _PATIENCE + _START:g} s"
    lines = report.splitlines() or ["refused it ended at once"]
    if lines[-1].startswith("refused"):
        raise StageError(
            f"this machine does not give the sandbox ({lines[-1].removeprefix('refused ')}; {errors.strip()[-500:]}), "
            "and programs are not run without it; it needs Linux 5.14 or later and permission for user namespaces "
            "(user.max_user_namespaces above 0) or, in a container, CAP_SYS_ADMIN and no AppArmor profile against mount"
        )
    return _ending(int(lines[-1].removeprefix("ended ")), errors, limits) if len(lines) > 1 else "killed: with its jail"


def _ending(status: int, errors: str, limits: Limits) -> str | None:
    if status == 0:
        return None
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"time: more than {limits.seconds:g} s of CPU"
    if status < 0:
        return f"killed: {signal.Signals(-status).name}"
    if last.startswith("MemoryError"):
        return f"memory: more than {limits.memory_mib} MiB"
    if last.startswith("OSError: [Errno 27]"):
        return f"output: more than {limits.disk_mib} MiB"
    return f"failed: {last[:200] or f'exit code {status}'}"
