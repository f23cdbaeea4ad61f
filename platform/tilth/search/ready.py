"""A trial that is about to run in a pack, and the time that it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilth.search.rows import as_seen
from tilth.trials import Trial as Member

if TYPE_CHECKING:
    from tilth.recipe import Stage
    from tilth.runs import Artifact, Step
    from tilth.search.trials import Trial


@dataclass
class Ready:
    """A trial whose searched stage is about to run."""

    trial: Trial
    step: Step
    inputs: dict[str, Artifact]
    #: seconds that what comes before that stage took
    before: float
    #: when it entered the pack, later by what was done for others meanwhile
    entered: float = 0.0

    @property
    def seconds(self) -> float:
        """How long its searched stage has run."""
        return time.monotonic() - self.entered

    @property
    def taken(self) -> float:
        """What counts against its limit."""
        return self.before + self.seconds

    @property
    def seen(self) -> Stage:
        """Its searched stage, for packs to be sized by."""
        return as_seen(self.step.stage, self.inputs)

    @property
    def member(self) -> Member:
        return Member(str(self.trial.number), self.step.stage, self.step.out, self.inputs)
