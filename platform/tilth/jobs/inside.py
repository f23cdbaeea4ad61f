"""What `tilth run` does when it is a job: it takes its secrets from where the spec says, and keeps its time limit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tilth.errors import ClusterError, TimeLimitError
from tilth.jobs.names import SECRETS, TIME_LIMIT

#: after the limit, how long the run may take to stop by itself
GRACE_SECONDS = 60.0


@contextmanager
def conditions() -> Iterator[None]:
    """The conditions of a job, for the time of its run; none where this is no job."""
    take_secrets()
    with _within(float(os.environ.get(TIME_LIMIT) or 0)):
        yield


def take_secrets() -> None:
    """Put each secret that the job names into this process's environment. ClusterError where one is missing.

    Ray calls it in every worker of the job before anything else (`worker_process_setup_hook`).
    """
    pairs = (item.partition("=") for item in os.environ.get(SECRETS, "").split(",") if item)
    for name, _, where in pairs:
        if where != "env":
            os.environ[name] = _read(name, Path(where))
        elif not os.environ.get(name):
            raise ClusterError(
                f"the job's secret {name} is not in the environment of the cluster; set it where its nodes "
                "start (a Kubernetes Secret by envFrom), or name a file that holds it"
            )


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"the job's secret {name} cannot be read on this node: {error}; mount it there") from error


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Stop as Ctrl-C would when the time is over, and end the process where that takes too long; 0: no limit."""
    if not seconds:
        yield
        return
    over = False

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal over
        if over:
            os._exit(TimeLimitError.exit_code)
        over = True
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in what a shell has started in the background
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, GRACE_SECONDS)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        if not over:
            raise
        raise TimeLimitError(
            f"the job's time limit of {seconds / 3600:.4g} hours is over; what is finished stays: submit it with a "
            "larger `hours` and it goes on from there"
        ) from stopped
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
