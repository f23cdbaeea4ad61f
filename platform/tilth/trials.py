"""Trials of one kind of stage that are trained together, as a pack: what a search hands over and what it gets back.

A search asks a stage's class which of its trials may share a pack (`Stage.packs`) and lets it train them
(`Stage.pack`). Trials that no pack takes are run one by one, as the stages that they are.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tilth.errors import StageError
from tilth.nodes import Workers

if TYPE_CHECKING:
    from tilth.recipe import Stage
    from tilth.runs import Artifact, Out


@dataclass(frozen=True)
class Packs:
    """How trials are divided, by their names: those of each pack, and why each of the others is run by itself."""

    together: tuple[tuple[str, ...], ...] = ()
    apart: Mapping[str, str] = field(default_factory=dict)
    #: how many trials of each pack there is memory for at once; empty: for as many as there are places
    at_once: tuple[int, ...] = ()
    #: the workers of every pack that is not trained in this process, which it holds as long as it is trained
    holds: tuple[Workers, ...] = ()


@dataclass(frozen=True)
class Trial:
    """A stage to run, as a recipe would: where it works, and the artifact of each "@stage" that it refers to."""

    name: str
    stage: Stage
    out: Out
    inputs: Mapping[str, Artifact]


@dataclass(frozen=True)
class Report:
    """How far a trial is. `loss` is that of the step's rows, `validation_loss` that measured right after the step."""

    trial: str
    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float
    validation_loss: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """What trials may be compared by, under the names of `Stage.tells`."""
        told = {"loss": self.loss, "validation_loss": self.validation_loss}
        return {name: value for name, value in told.items() if value is not None}


#: Asked after every step of every trial: whether the trial goes on. One that does not leaves its place to another.
Judge = Callable[[Report], bool]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: its artifact as `Stage.run` returns it, or why there is none."""

    trial: str
    artifact: Artifact | None = None
    why: str = ""
    #: the judge ended it: its trace is there, but no artifact, for it is not what its fingerprint says
    stopped: bool = False
    #: it cannot share the pass of the others, as `why` says: nothing of it has run, and it is to run by itself
    apart: bool = False


def sweep() -> None:
    """Give back what nothing holds any more, such as the last pack, whose parts refer to one another."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class CrowdedError(StageError):
    """Trials of a pack do not fit the device's memory at once; fewer of them may."""


class TimeOverError(KeyboardInterrupt):
    """A trial's time is over; a stage that catches every Exception does not catch this.

    Of all that a signal may raise, this is what ends Ray's waiting at once; it comes out of there as Ctrl-C would.
    """

    #: the trial of a pack whose own work it broke off; None: a trial's that runs alone, or work for all of a pack
    trial: str | None = None
