"""One trial after another, from this process."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from tilth.errors import StageError
from tilth.recipe import STOP, Figures
from tilth.search.bench import Bench, Outcome, over
from tilth.trials import TimeOverError

if TYPE_CHECKING:
    from tilth.runs import Step
    from tilth.search.trials import Trial, Trials

POLL_SECONDS = 0.5
#: the shortest time that a timer takes for one
AT_ONCE = 0.01


@dataclass(frozen=True)
class Clock:
    """Counts down the seconds of `limited`; None: never. What else the timer was to end goes on being waited for."""

    seconds: float | None
    #: when the timer was to ring for somebody else, by `time.monotonic`
    theirs: float = math.inf

    def start(self) -> None:
        """Begin anew with all of them."""
        if self.seconds is not None:
            _ring_in(min(self.seconds, self.theirs - time.monotonic()))

    def stop(self) -> None:
        if self.seconds is not None:
            _ring_in(self.theirs - time.monotonic())


def _ring_in(seconds: float, again: float = 0.0) -> None:
    """At once where the time is over; never where there is none. Then every `again` seconds, if that is given."""
    signal.setitimer(signal.ITIMER_REAL, 0 if math.isinf(seconds) else max(AT_ONCE, seconds), again)


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

    left, again = signal.getitimer(signal.ITIMER_REAL)
    clock = Clock(seconds, time.monotonic() + left if left else math.inf)
    rung = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal rung
        if time.monotonic() >= clock.theirs and callable(before):
            signal.setitimer(signal.ITIMER_REAL, again, again)
            before(number, frame)
            return
        rung = True
        _abort_ray_train()
        raise TimeOverError

    before = signal.signal(signal.SIGALRM, end)
    clock.start()
    try:
        yield clock
    except TimeOverError:
        raise
    except (KeyboardInterrupt, SystemExit) as error:  # as what ends Ray's waiting comes out of there
        if not rung:
            raise
        raise TimeOverError from error
    finally:
        _ring_in(clock.theirs - time.monotonic(), again)
        signal.signal(signal.SIGALRM, before)


def _abort_ray_train() -> None:
    """End a training that this process waits for as Ctrl-C would: its workers would go on, and keep their places."""
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler) and getattr(handler, "__module__", "").startswith("ray.train"):
        with suppress(SystemExit):
            handler(signal.SIGINT, None)


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
