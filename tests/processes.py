"""Processes of a test's own: who descends from whom, and who is still there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """Every living process that descends from `pid`."""
    parents = {int(item.name): _parent(item) for item in Path("/proc").iterdir() if item.name.isdigit()}
    found, size = {pid}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {pid}


def titled(pids: Iterable[int], words: str) -> list[int]:
    """Those of `pids` whose command line holds `words`."""
    return [pid for pid in sorted(pids) if words in _title(pid)]


def alive(pids: Iterable[int]) -> set[int]:
    """Those of `pids` that still run; one that has ended and waits for its parent does not."""
    return {pid for pid in pids if _state(pid) not in ("", "Z", "X")}


def until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait until `condition` holds, at most so long; whether it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def _fields(stat: Path) -> list[str]:
    try:
        return stat.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _state(pid: int) -> str:
    return next(iter(_fields(Path(f"/proc/{pid}/stat"))), "")


def _parent(process: Path) -> int:
    fields = _fields(process / "stat")
    return int(fields[1]) if fields else 0
