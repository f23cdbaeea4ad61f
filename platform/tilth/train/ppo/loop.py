"""Step after step until the end: looks at held-out prompts, detectors, checkpoints, and the best policy kept.

All that decides the next step lies in a checkpoint, so that a run which was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilth.errors import StageError
from tilth.storage import Store
from tilth.train import trace
from tilth.train.bests import best_at, keep_bests
from tilth.train.checkpoint import Link, scratch, upload
from tilth.train.config import Checkpointing, Validation
from tilth.train.job import PROGRESS
from tilth.train.ppo import looks
from tilth.train.ppo.detecting import Alarm, alarms
from tilth.train.ppo.held_out import HeldOut
from tilth.train.ppo.learner import Learner
from tilth.train.ppo.prompts import Prompt, taken
from tilth.train.ppo.settings import Gold, Watchers
from tilth.train.trackers import Scalars

LOOKS = "looks"
STATE = "state.json"
#: in a checkpoint: the state that a detector may go back to, which is an earlier one
GOOD = "good"
PROGRESS_SECONDS = 0.5


class DivergedError(StageError):
    """A detector whose action is to stop has spoken, at a step."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class Plan:
    """How long a run is, and how it is watched."""

    steps: int
    batch: int
    seed: int
    watchers: Watchers = field(default_factory=Watchers)
    checkpointing: Checkpointing = field(default_factory=Checkpointing)
    validation: Validation | None = None
    gold: Gold = field(default_factory=Gold)
    #: whether rollouts may be drawn a step ahead
    ahead: bool = False


@dataclass
class Loop:
    """A run on its way. Rank 0 writes for all."""

    learner: Learner
    prompts: Sequence[Prompt]
    held_out: HeldOut | None
    plan: Plan
    store: Store
    link: Link
    #: where this rank keeps the state that a detector may go back to
    good: Path
    #: told the figures of every step, if anyone is
    scalars: Scalars | None = None
    step: int = 0
    roll_backs: int = 0
    #: lines of the trace that are not on storage yet
    lines: list[dict[str, Any]] = field(default_factory=list)
    value_losses: list[float] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)
    #: the steps that were the best at the last two checkpoints, the newer first
    asked_for: tuple[int, ...] = ()
    #: what a detector last said
    said: str = ""
    _shown: float = 0.0

    def run(self) -> None:
        """Go on from where `resume` left it to the end. DivergedError where a detector stops it."""
        if self.step == 0:
            self._keep(self.good)
            self._look()
        try:
            while self.step < self.plan.steps and not self._waited():
                self._one()
                warned = self.link.preempted()
                if (warned or self._due(self.plan.checkpointing.every_steps)) and self.step < self.plan.steps:
                    self._commit()
        finally:  # what a detector saw is to be read, above all where it ended the run
            self._flush()
        self.link.settle()

    def _one(self) -> None:
        start = time.monotonic()
        line = self.learner.step(self.step, self.plan.steps, self._asked(self.step), self._later())
        self.step += 1
        epoch = round(self.step * self.plan.batch / len(self.prompts), 6)
        line |= {"epoch": epoch, "seconds": round(time.monotonic() - start, 4)}
        spoken = alarms(self.plan.watchers, line, self.value_losses)
        if spoken:
            line["alarms"] = [alarm.told() for alarm in spoken]
            self.said = f"step {self.step}: " + "; ".join(f"{alarm} ({alarm.action})" for alarm in spoken)
        self.lines.append(line)
        if self.scalars:
            self.scalars.write(self.step, line)
        self.value_losses.append(line["value_loss"])
        self._show(always=bool(spoken))
        self._act(spoken)
        every = self.plan.validation.every_steps if self.plan.validation else None
        last = self.step == self.plan.steps
        if self.held_out and (last or (every is not None and self.step % every == 0)):
            self._look()

    def _asked(self, step: int) -> list[Prompt]:
        places = taken(step, self.plan.batch, len(self.prompts), self.plan.seed)
        return [self.prompts[place] for place in places]

    def _later(self) -> list[Prompt]:
        return self._asked(self.step + 1) if self.plan.ahead and self.step + 1 < self.plan.steps else []

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _waited(self) -> bool:
        validation = self.plan.validation
        if validation is None or validation.patience is None:
            return False
        return looks.waited(self.found, validation.patience, validation.min_delta)

    # detectors

    def _act(self, spoken: Sequence[Alarm]) -> None:
        """Do what the detectors ask for, the gravest first."""
        actions = {alarm.action for alarm in spoken}
        if "stop" in actions:
            raise self._diverged([alarm for alarm in spoken if alarm.action == "stop"])
        if "roll_back" in actions:
            self.roll_backs += 1
            if self.roll_backs > self.plan.watchers.roll_backs:
                raise self._diverged([alarm for alarm in spoken if alarm.action == "roll_back"])
            shutil.rmtree(self._unproved, ignore_errors=True)
            self.learner.load(self.good)
            self.learner.ahead.clear()
        elif self._unproved.exists():
            # a step sees what the update before it has done: with this one the state it began from has proved good
            shutil.rmtree(self.good)
            self._unproved.rename(self.good)
        if "raise_kl" in actions:
            self.learner.controller.raise_by(2.0)

    def _diverged(self, spoken: Sequence[Alarm]) -> DivergedError:
        why = "; ".join(map(str, spoken))
        return DivergedError(
            f"at step {self.step} {why}; lower optimisation.learning_rate or algorithm.epochs", self.step
        )

    # looks

    def _look(self) -> None:
        """Look at held-out prompts, and keep the weights where they are the best so far."""
        if self.held_out is None:
            return
        found = self.held_out.look(self.learner, self.step, self.found[0] if self.found else None)
        self.found.append(found)
        if self.scalars:
            self.scalars.write(self.step, found, "validation")
        if self.link.rank == 0:
            self.store.write_json(f"{LOOKS}/{self.step:08d}.json", found)
        keeps = self.plan.validation is not None and self.plan.validation.keeps_best
        if keeps and looks.best(self.found, self.plan.gold.max_kl) is found and self.link.rank == 0:
            folder = scratch()
            save_model(self.learner, folder)
            upload(folder, self.store, best_at(self.step))
            shutil.rmtree(folder)
            keep_bests(self.store, self.step, *self.asked_for)

    # checkpoints

    def _commit(self) -> None:
        """Hand over all that the next step depends on."""
        self._flush()
        folder = scratch()
        self.learner.save(folder, writes=self.link.rank == 0)
        if self.link.rank == 0:
            own = {"step": self.step, "roll_backs": self.roll_backs, "value_losses": self.value_losses}
            (folder / STATE).write_text(json.dumps(own), encoding="utf-8")
            if self.plan.watchers.rolls_back:
                shutil.copytree(self.good, folder / GOOD)
        self.link.commit(folder, self.step)
        self._forget_bests()
        self._show(always=True)
        self._keep(self._unproved)

    def _forget_bests(self) -> None:
        """Remove weights that were the best, and that no checkpoint asks for any more."""
        if self.link.rank or not self.found:
            return
        self.asked_for = (self._best(), *self.asked_for[:1])
        keep_bests(self.store, *self.asked_for)

    def _best(self) -> int:
        """The step that is the best so far."""
        return int(looks.best(self.found, self.plan.gold.max_kl)["step"])

    @property
    def _unproved(self) -> Path:
        """The state of a checkpoint after which no step was made yet."""
        return self.good.with_suffix(".unproved")

    def _keep(self, folder: Path) -> None:
        """Keep the present state at hand on every rank, where a detector may ask for it."""
        if self.plan.watchers.rolls_back:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self.learner.save(folder)

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        folder = self.link.resume()
        own: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8")) if folder else {"step": 0}
        if self.link.rank == 0:
            trace.forget(self.store, own["step"])
        if folder is None:
            return
        self.learner.load(folder)
        if (folder / GOOD).exists():
            shutil.copytree(folder / GOOD, self.good)
            self._keep(self._unproved)
        else:
            self._keep(self.good)
        self.step, self.roll_backs, self.value_losses = own["step"], own["roll_backs"], own["value_losses"]
        names = [name for name in self.store.list(LOOKS) if int(Path(name).stem) <= self.step]
        self.found = [self.store.read_json(f"{LOOKS}/{name}") for name in names]
        if self.found:
            self.asked_for = (self._best(),)

    def _flush(self) -> None:
        """Write the lines that are not written yet."""
        if self.link.rank == 0 and self.lines:
            trace.write_segment(self.store, self.step, self.lines)
        self.lines = []

    def _show(self, always: bool = False) -> None:
        """Tell the driver how far training is, and who trains."""
        if self.link.rank == 0 and (always or time.monotonic() - self._shown >= PROGRESS_SECONDS):
            self._shown = time.monotonic()
            where = {"host": socket.gethostname(), "pid": os.getpid(), "said": self.said}
            self.store.write_json(PROGRESS, {"step": self.step, "total": self.plan.steps, **where})


def save_model(learner: Learner, folder: Path) -> None:
    """The policy, an adapter or all weights, and its tokenizer; neither critic nor value head."""
    learner.policy.model.save_pretrained(folder)
    learner.tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
