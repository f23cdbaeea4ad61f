"""One trial after another, from this process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilth.errors import StageError
from tilth.recipe import STOP, Figures
from tilth.search.bench import Bench, Outcome, over
from tilth.trials import TimeOverError

if TYPE_CHECKING:
    from tilth.runs import Step
    from tilth.search.trials import Trial, Trials

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Clock:
    """Counts down the seconds of `limited`; None: never."""

    seconds: float | None

    def start(self) -> None:
        """Begin anew with all of them."""
        if self.seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def stop(self) -> None:
        if self.seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)


def run(trials: Trials, bench: Bench) -> None:
    """Run every trial; what a trial raises is told, what the disk or the cluster raises goes on up."""
    while (trial := trials.next()) is not None:
        trials.tell(trial, one(trials, trial, bench))


def one(trials: Trials, trial: Trial, bench: Bench) -> Outcome:
    """Run one trial in its time, followed where it may be ended."""

    def watched(step: Step) -> AbstractContextManager[None]:
        return followed(step, lambda figures: trials.report(trial, figures))

    try:
        with limited(bench.limit):
            return bench.attempt(trial.values, watched if trials.looks else None)
    except TimeOverError:
        return Outcome(error=over(bench))


@contextmanager
def limited(seconds: float | None) -> Iterator[Clock]:
    """TimeOverError once the time is over. A signal does it, which also ends waiting and sleeping."""
    clock = Clock(seconds)
    if seconds is None:
        yield clock
        return
    if threading.current_thread() is not threading.main_thread():
        raise StageError("a limit of seconds needs the main thread; leave limit out, or take runner: {kind: tune}")

    def end(*_: Any) -> None:
        raise TimeOverError

    before = signal.signal(signal.SIGALRM, end)
    clock.start()
    try:
        yield clock
    finally:
        clock.stop()
        signal.signal(signal.SIGALRM, before)


@contextmanager
def followed(step: Step, report: Callable[[Sequence[Figures]], bool]) -> Iterator[None]:
    """Report what the searched stage measures while it runs, and ask it to stop once `report` says so."""
    if step.reused:
        yield
        return
    over = threading.Event()

    def follow() -> None:
        while not over.wait(POLL_SECONDS):
            if not report(step.stage.course(step.store)):
                step.store.write_json(STOP, {"why": "others did better at this step"})
                return

    with ThreadPoolExecutor(1, thread_name_prefix="tilth-follow") as pool:
        following = pool.submit(follow)
        try:
            yield
        finally:
            over.set()
    following.result()  # raises what it was stopped by
