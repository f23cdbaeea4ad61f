"""Trials in packs: those that share what they train on run together, in one pass of what they share.

Whether and how trials are trained together is the searched stage's own work (`Stage.packs`, `Stage.pack`). What it
does not take is run by itself, and why is said. So are the trials of a pack that ended before its time, and in smaller
packs where memory was full: what then fails by itself is the trial's own fault.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, TypeVar

from tilth import ui
from tilth.errors import StageError
from tilth.search import beside, one_by_one
from tilth.search.bench import Bench, Outcome, over
from tilth.search.one_by_one import Clock, limited
from tilth.search.ready import Ready
from tilth.trials import CrowdedError, Packs, Report, TimeOverError, sweep
from tilth.trials import Outcome as Ended

if TYPE_CHECKING:
    from tilth.search.trials import Trial, Trials
    from tilth.trials import Trial as Member

Given = TypeVar("Given")
#: seconds
MOMENT = 1.0


def run(trials: Trials, bench: Bench, places: int) -> None:
    """Run every trial, at most `places` in a pack; one that ends leaves its place to the next that fits in."""
    desk = Desk(trials, bench, places)
    while batch := desk.batch():
        desk.run(batch)
    for trial in desk.later:
        trials.tell(trial, one_by_one.one(trials, trial, bench))


class Desk:
    """Between the trials and the packs."""

    def __init__(self, trials: Trials, bench: Bench, places: int) -> None:
        self.trials, self.bench, self.places = trials, bench, places
        #: asked, and not fit for the pack at hand
        self.aside: list[Ready] = []
        self.running: dict[str, Ready] = {}
        #: those that turned out to share no pass, and are run by themselves once the pack has ended
        self.apart: list[Ready] = []
        #: fingerprints that were given to a pack: no two trials may write to one place
        self.given: set[str] = set()
        #: twins of such trials, which reuse what these leave, and those whose finished stage is damaged
        self.later: list[Trial] = []
        #: of the pack at hand: its time is over where nothing is heard of any trial for as long as one may take
        self.clock = Clock(None)
        #: entered the pack last, and since when: what the pack does until it is heard of again is to set that up
        self.entering: tuple[Ready, float] | None = None

    def batch(self) -> list[Ready]:
        """Trials until they fill a pack, those first that were put aside; at most twice as many as it holds."""
        found, self.aside = self.aside, []
        while len(found) < 2 * self.places and not self._full(found) and (ready := self.next()) is not None:
            found.append(ready)
        return found

    def _full(self, batch: list[Ready]) -> bool:
        if len(batch) < 2 or self.places < 2:  # no pack, and there is no telling yet or nothing to wait for
            return len(batch) >= self.places
        packs = self._packs(batch)
        return any(len(names) >= most for names, most in self._sized(packs))

    def _packs(self, batch: list[Ready]) -> Packs:
        stages = {str(ready.trial.number): ready.seen for ready in batch}
        if self.places < 2:
            return Packs(apart=dict.fromkeys(stages, "no two trials fitted the device's memory at once"))
        return beside.placed(self.bench, stages, type(batch[0].step.stage).packs(stages, self.places))

    def _sized(self, packs: Packs) -> Iterator[tuple[tuple[str, ...], int]]:
        """The names of each pack, and its places."""
        for names, most in zip(packs.together, packs.at_once or repeat(self.places), strict=False):
            yield names, min(most, self.places)

    def next(self) -> Ready | None:
        """The next trial that has something to train; others are told at once."""
        while (trial := self.trials.next()) is not None:
            if (ready := self._ready(trial)) is not None:
                return ready
        return None

    def _ready(self, trial: Trial) -> Ready | None:
        """The trial with all that its searched stage builds on; None where there is nothing to train, or it failed."""
        limit = self.bench.limit
        found = self._within(limit, lambda: self.bench.guarded(lambda: self._prepared(trial)))
        if isinstance(found, Ready) and (found.step.damaged or found.step.fingerprint in self.given):
            self.later.append(trial)
            return None
        if isinstance(found, Ready) and not found.step.reused:
            self.given.add(found.step.fingerprint)
            return found
        if isinstance(found, Ready):
            found = self._within(limit, lambda: self.bench.attempt(trial.values))
        self.trials.tell(trial, found)
        return None

    def _within(self, seconds: float | None, work: Callable[[], Given]) -> Given | Outcome:
        """What work gives in so many seconds, or what comes of a trial that takes longer."""
        try:
            with limited(seconds):
                return work()
        except TimeOverError:
            return Outcome(error=over(self.bench))

    def _prepared(self, trial: Trial) -> Ready:
        bench, began = self.bench, time.monotonic()
        recipe = bench.changed(trial.values)
        refs = [ref for _, ref in recipe.stages[bench.target].refs()]
        before = bench.run.build(recipe, [ref.stage for ref in refs])
        inputs = {str(ref): before[ref.stage] for ref in refs}
        return Ready(trial, bench.step(recipe), inputs, time.monotonic() - began)

    def run(self, batch: list[Ready]) -> None:
        """Run the packs that trials make; the others wait for more like them, or where there is no pack run alone."""
        named = {str(ready.trial.number): ready for ready in batch}
        found = self._packs(batch)
        if found.together:
            packs = [([named.pop(name) for name in names], most) for names, most in self._sized(found)]
            self.aside = list(named.values())
            for members, most in packs:
                self._pack(members, most)
            return
        for name, ready in named.items():
            ui.reporter().say(f"trial {name} is run by itself: {found.apart[name]}")
            self._alone(ready)

    def _pack(self, first: list[Ready], most: int) -> None:
        """Run a pack that begins with these; where it ends before its time, what it took is run by itself."""
        waiting, places = list(first), min(most, self.places)
        if places < 2:  # an earlier pack of this batch has shown that no two fit
            self.aside = [*waiting, *self.aside]
            return
        try:
            self._together(waiting, places)
        except CrowdedError as error:
            self._crowded(error)
        except StageError as error:
            ui.reporter().say(f"the pack ended: {error}; its trials are run by themselves")
        except TimeOverError as error:
            self._hung(error)
        if len(waiting) == len(first):  # a pack that takes none at all would be tried for ever
            self._entered(waiting.pop(0))
        self.aside = [*waiting, *self.aside]
        while self.running:
            self._alone(self.running.popitem()[1])
        while self.apart:
            self._alone(self.apart.pop(0))

    def _together(self, waiting: list[Ready], places: int) -> None:
        """Run a pack, and tell what comes of its trials as it comes."""
        kind = type(waiting[0].step.stage)
        self.entering = None
        with limited(self.bench.limit) as self.clock:
            outcomes = kind.pack(self._members(waiting, places), places, self.judge)
            try:
                for outcome in outcomes:
                    with self._beside():
                        self._ended(outcome)
            finally:
                self.clock.stop()
                self.clock = Clock(None)
                if isinstance(outcomes, Generator):
                    outcomes.close()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """What is done for one trial while the pack waits: it is no part of the time of the others."""
        self.clock.stop()
        self._set_up()
        began = time.monotonic()
        try:
            yield
        finally:
            self._spare(began)
            self.clock.start()

    def _set_up(self) -> None:
        """The trial that entered last is set up, which is its own time alone."""
        if self.entering is not None:
            ready, began = self.entering
            self.entering = None
            self._spare(began, ready)

    def _spare(self, began: float, own: Ready | None = None) -> None:
        """What was done since is no time of those that run, but for that whose own work it was."""
        passed = time.monotonic() - began
        for ready in self.running.values():
            if ready is not own:
                ready.entered += passed

    def _ended(self, ended: Ended) -> None:
        ready = self.running.pop(ended.trial)
        if ended.apart:
            ui.reporter().say(f"trial {ended.trial} is run by itself: {ended.why}")
            self.apart.append(ready)
            return
        if ended.artifact is not None:
            self.bench.run.finish(ready.step, ended.artifact, ready.seconds)
        self.trials.tell(ready.trial, self._outcome(ready, ended.why, ended.stopped))

    def _crowded(self, error: CrowdedError) -> None:
        """Memory was full: what ran goes on in smaller packs, and no pack is as large again."""
        if len(self.running) < 2:
            ui.reporter().say(f"the pack ended: {error}; what it held is run by itself")
            return
        self.places = (len(self.running) + 1) // 2
        ui.reporter().say(f"the pack ended: {error}; its trials go on with {self.places} places")
        self._put_aside()

    def _hung(self, error: TimeOverError) -> None:
        """Of no trial was heard for as long as one may take: that whose own work it was has failed."""
        ready = self.running.pop(error.trial, None) if error.trial is not None else None
        if ready is None:
            what = f"the pass of all trials took longer than their limit of {self.bench.limit:g} s"
            ui.reporter().say(f"the pack ended: {what}; its trials are run by themselves")
            return
        ui.reporter().say(f"the pack ended: trial {error.trial} hangs; the others go on in another")
        self.trials.tell(ready.trial, Outcome(error=over(self.bench)))
        self._put_aside()

    def _put_aside(self) -> None:
        self.aside = [*self.running.values(), *self.aside]
        self.running = {}

    def _outcome(self, ready: Ready, why: str, stopped: bool) -> Outcome:
        if self._late(ready) and stopped:
            return Outcome(error=over(self.bench))
        if stopped:
            return Outcome(stopped=True)
        if why:
            return Outcome(error=why)
        return self._within(self._left(ready), lambda: self.bench.attempt(ready.trial.values))

    def _left(self, ready: Ready) -> float | None:
        """Seconds that are left to a trial; a moment, in which what is done is found, where there are none."""
        limit = self.bench.limit
        if limit is None:
            return None
        return max(min(MOMENT, limit), limit - ready.taken)

    def _late(self, ready: Ready) -> bool:
        return self.bench.limit is not None and ready.taken > self.bench.limit

    def _members(self, waiting: list[Ready], places: int) -> Iterator[Member]:
        """Those at hand, then one for each place that becomes free; what does not fit waits for a pack of its own."""
        first = waiting[0]
        while waiting:
            yield self._entered(waiting.pop(0))
        while len(self.aside) + len(self.apart) < places and (other := self._offered()) is not None:
            if self._fits(first, other):
                yield self._entered(other)
            else:
                self.aside.append(other)

    def _offered(self) -> Ready | None:
        with self._beside():
            return self.next()

    def _entered(self, ready: Ready) -> Member:
        """The trial as a member of the pack, which begins to set it up: it has its whole time for that."""
        self._set_up()
        ready.entered = time.monotonic()
        self.running[str(ready.trial.number)] = ready
        self.entering = (ready, ready.entered)
        self.clock.start()
        return ready.member

    def _fits(self, one: Ready, other: Ready) -> bool:
        """Whether they can share a pack, for which there is a place."""
        stages = {"one": one.seen, "other": other.seen}
        return bool(type(one.step.stage).packs(stages, 2, math.inf).together)

    def judge(self, report: Report) -> bool:
        """Whether a trial of a pack goes on."""
        self._set_up()
        ready = self.running.get(report.trial)
        if ready is None or self._late(ready):  # none: it hung, was ended, and goes on after all
            return False
        self.clock.start()
        if report.step >= report.steps:  # it is trained already: its score says what it is worth
            return True
        return self.trials.report(ready.trial, [(report.step, report.figures)])

    def _alone(self, ready: Ready) -> None:
        sweep()  # it may be another process that trains it, on the device that the last pack was on
        self.trials.tell(ready.trial, one_by_one.one(self.trials, ready.trial, self.bench))
