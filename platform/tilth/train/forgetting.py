"""What fine-tuning may cost: general ability, measured before and after, and what helps to keep it. Light."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from tilth.config import Component, DatasetRef
from tilth.errors import Problem
from tilth.generate.choosing import Choosing

if TYPE_CHECKING:
    from tilth.train.config import Scale


class Probe(Component):
    """Rows of general ability, scored before and after training.

    Of general language perplexity and the share of tokens guessed right; of a zero-shot task accuracy.
    """

    data: DatasetRef = Field(description="The dataset; its rows must not be trained on.")
    split: str = Field("test", description="The split whose rows are scored.")
    rows: int = Field(64, ge=1, description="Rows scored, the first ones of the split.")
    zero_shot: Choosing | None = Field(
        None, description="The rows are a task, whose answer the model chooses; null: they are general language."
    )

    @property
    def name(self) -> str:
        return f"{self.data.lstrip('@')}_{self.split}" + (" zero-shot" if self.zero_shot else "")


class Replay(Component):
    """General rows among those that are learnt (Scialom et al. 2022, arXiv:2205.12393)."""

    data: DatasetRef = Field(description="The dataset that rows are taken from.")
    split: str = Field("train", description="Its split.")
    share: float = Field(0.1, gt=0, lt=1, description="Share of the rows trained on that are replayed.")

    def rows(self, learnt: int, there: int) -> int:
        """How many of `there` rows join `learnt` ones."""
        return min(there, max(1, round(learnt * self.share / (1 - self.share))))


class Forgetting(Component):
    """General ability watched, and remedies for its loss."""

    probes: tuple[Probe, ...] = Field((), description="What is scored before and after training.")
    replay: Replay | None = Field(None, description="General rows that are trained on as well.")
    l2_to_init: float = Field(
        0.0,
        ge=0,
        description="Decoupled pull of trained weights to where they began, times the learning rate "
        "(Kumar et al. 2023, arXiv:2308.11958).",
    )

    def check(self) -> list[Problem]:
        return list(self._doubled())

    def _doubled(self) -> Iterator[Problem]:
        names = [probe.name for probe in self.probes]
        for number, name in enumerate(names):
            if name in names[:number]:
                yield Problem(f"probes.{number}", f"{name} is probed already", "leave out one of the two")
        for number, probe in enumerate(self.probes):
            if self.replay and (probe.data, probe.split) == (self.replay.data, self.replay.split):
                what = f"split {probe.split!r} of {probe.data} is replayed, so it says nothing of what is forgotten"
                yield Problem(f"probes.{number}", what, "probe another split")

    def scale_problem(self, scale: Scale) -> Problem | None:
        """DeepSpeed's optimizer keeps weights of its own, which a pull on the model's would not reach."""
        if not self.l2_to_init or scale.deepspeed is None:
            return None
        what = "weights that DeepSpeed keeps cannot be pulled to where they began"
        return Problem("forgetting.l2_to_init", what, "set l2_to_init: 0, or scale.deepspeed: null")
