"""Trials in packs: those that share what they train on run in one process, in one pass of what they share.

Whether and how trials are trained together is the searched stage's own work (`Stage.packs`, `Stage.pack`). What it
does not take is run by itself, and why is said.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilth import ui
from tilth.errors import StageError
from tilth.search import one_by_one
from tilth.search.bench import Bench, Outcome, over
from tilth.trials import Packs, Report
from tilth.trials import Trial as Member

if TYPE_CHECKING:
    from tilth.runs import Artifact, Step
    from tilth.search.trials import Trial, Trials


def run(trials: Trials, bench: Bench, places: int) -> None:
    """Run every trial, at most `places` in a pack; one that ends leaves its place to the next that fits in."""
    desk = Desk(trials, bench, places)
    while batch := desk.batch():
        desk.run(batch)
    for trial in desk.later:
        trials.tell(trial, one_by_one.one(trials, trial, bench))


@dataclass
class Ready:
    """A trial whose searched stage is about to run."""

    trial: Trial
    step: Step
    inputs: dict[str, Artifact]
    began: float

    @property
    def member(self) -> Member:
        return Member(str(self.trial.number), self.step.stage, self.step.out, self.inputs)


class Desk:
    """Between the trials and the packs."""

    def __init__(self, trials: Trials, bench: Bench, places: int) -> None:
        self.trials, self.bench, self.places = trials, bench, places
        #: asked, and not fit for the pack at hand
        self.aside: list[Ready] = []
        self.running: dict[str, Ready] = {}
        #: fingerprints that were given to a pack: no two trials may write to one place
        self.given: set[str] = set()
        #: twins of such trials, which reuse what these leave, and those whose finished stage is damaged
        self.later: list[Trial] = []

    def batch(self) -> list[Ready]:
        """Trials until they fill a pack, those first that were put aside; at most twice as many as it holds."""
        found, self.aside = self.aside, []
        while len(found) < 2 * self.places and not self._full(found) and (ready := self.next()) is not None:
            found.append(ready)
        return found

    def _full(self, batch: list[Ready]) -> bool:
        return bool(batch) and any(len(names) >= self.places for names in self._packs(batch).together)

    def _packs(self, batch: list[Ready]) -> Packs:
        stages = {str(ready.trial.number): ready.step.stage for ready in batch}
        return type(batch[0].step.stage).packs(stages, self.places)

    def next(self) -> Ready | None:
        """The next trial that has something to train; others are told at once."""
        while (trial := self.trials.next()) is not None:
            if (ready := self._ready(trial)) is not None:
                return ready
        return None

    def _ready(self, trial: Trial) -> Ready | None:
        """The trial with all that its searched stage builds on; None where there is nothing to train, or it failed."""
        found = self.bench.guarded(lambda: self._prepared(trial))
        if isinstance(found, Ready) and (found.step.damaged or found.step.fingerprint in self.given):
            self.later.append(trial)
            return None
        if isinstance(found, Ready) and not found.step.reused:
            self.given.add(found.step.fingerprint)
            return found
        self.trials.tell(trial, self.bench.attempt(trial.values) if isinstance(found, Ready) else found)
        return None

    def _prepared(self, trial: Trial) -> Ready:
        bench = self.bench
        recipe = bench.changed(trial.values)
        refs = [ref for _, ref in recipe.stages[bench.target].refs()]
        before = bench.run.build(recipe, [ref.stage for ref in refs])
        return Ready(trial, bench.step(recipe), {str(ref): before[ref.stage] for ref in refs}, time.monotonic())

    def run(self, batch: list[Ready]) -> None:
        """Run the packs that trials make; the others wait for more like them, or where there is no pack run alone."""
        named = {str(ready.trial.number): ready for ready in batch}
        found = self._packs(batch)
        if found.together:
            packs = [[named.pop(name) for name in names] for names in found.together]
            self.aside = list(named.values())
            for members in packs:
                self._pack(members)
            return
        for name, ready in named.items():
            ui.reporter().say(f"trial {name} is run by itself: {found.apart[name]}")
            self._alone(ready)

    def _pack(self, first: list[Ready]) -> None:
        """Run a pack that begins with these; where it ends before its time, what it took is run by itself."""
        waiting = list(first)
        try:
            for outcome in type(first[0].step.stage).pack(self._members(waiting), self.places, self.judge):
                ready = self.running.pop(outcome.trial)
                if outcome.artifact is not None:
                    self.bench.run.finish(ready.step, outcome.artifact, time.monotonic() - ready.began)
                self.trials.tell(ready.trial, self._outcome(ready, outcome.why, outcome.stopped))
        except StageError as error:
            ui.reporter().say(f"the pack ended: {error}; its trials are run by themselves")
        if len(waiting) == len(first):  # a pack that takes none at all would be tried for ever
            self._entered(waiting.pop(0))
        self.aside = [*waiting, *self.aside]
        while self.running:
            self._alone(self.running.popitem()[1])

    def _outcome(self, ready: Ready, why: str, stopped: bool) -> Outcome:
        if self._late(ready) and stopped:
            return Outcome(error=over(self.bench))
        if stopped:
            return Outcome(stopped=True)
        return Outcome(error=why) if why else self.bench.attempt(ready.trial.values)

    def _late(self, ready: Ready) -> bool:
        return self.bench.limit is not None and time.monotonic() - ready.began > self.bench.limit

    def _members(self, waiting: list[Ready]) -> Iterator[Member]:
        """Those at hand, then one for each place that becomes free; what does not fit waits for a pack of its own."""
        first = waiting[0]
        while waiting:
            yield self._entered(waiting.pop(0))
        while len(self.aside) < self.places and (other := self.next()) is not None:
            if self._fits(first, other):
                yield self._entered(other)
            else:
                self.aside.append(other)

    def _entered(self, ready: Ready) -> Member:
        ready.began = time.monotonic()
        self.running[str(ready.trial.number)] = ready
        return ready.member

    def _fits(self, one: Ready, other: Ready) -> bool:
        return any(len(names) > 1 for names in self._packs([one, other]).together)

    def judge(self, report: Report) -> bool:
        """Whether a trial of a pack goes on."""
        ready = self.running[report.trial]
        if self._late(ready):
            return False
        figures = {"loss": report.loss}
        if report.validation_loss is not None:
            figures["validation_loss"] = report.validation_loss
        return self.trials.report(ready.trial, [(report.step, figures)])

    def _alone(self, ready: Ready) -> None:
        self.trials.tell(ready.trial, one_by_one.one(self.trials, ready.trial, self.bench))
