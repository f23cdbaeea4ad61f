"""Reward models: a scalar head learns which of two answers people prefer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth import ui
from tilth.config import Component, digest
from tilth.data.loading import MEMBERS
from tilth.data.schema import Row, value_at
from tilth.errors import Problem, StageError
from tilth.train.base import Training
from tilth.train.config import Fillers

if TYPE_CHECKING:
    from tilth.train.job import Job
    from tilth.train.launch import Trained


class Ensemble(Component):
    """Several opinions instead of one: their mean is the reward, their spread says how sure it is.

    Heads share one trunk and cost next to nothing, but they err together; whole models from seeds of their own err
    apart (Coste et al. 2024, arXiv:2310.02743). Both together give heads x seeds members.
    """

    heads: int = Field(
        1, ge=1, le=64, description="Scalar heads on one trunk; each learns from its own half of the pairs, twice."
    )
    seeds: int = Field(1, ge=1, le=16, description="Whole models, one after another, from seed, seed + 1, …")


class RewardTraining(Training):
    """A reward model by TRL, with the loss of Bradley & Terry (1952) as in Ouyang et al. 2022, arXiv:2203.02155.

    The head stands on a causal language model, which it reads at the last token, or on an encoder. Prompt and answer
    are read as one text and the token that ends texts; what is longer than max_length loses its beginning, and `cut`
    counts such pairs: none is dropped. Of held-out pairs the artifact tells accuracy, calibration and the bias for
    length. Dropout is off. Where pairs are missing to a whole batch, a step is that much weaker; its figures are of
    the pairs that it has.
    """

    version: ClassVar[int] = 2  # members of an ensemble agree up to a constant

    margin: str | None = Field(
        None, description="Path of the number by which chosen is to lead, such as meta.margin (arXiv:2307.09288)."
    )
    ties: str | None = Field(
        None, description="Path of what is true where both answers are as good, such as meta.tie; either may then win."
    )
    center: float = Field(
        0.0, ge=0, description="Pulls the two scores of a pair to a mean of 0 (arXiv:2312.09244); 0.01 is usual."
    )
    ensemble: Ensemble = Field(Ensemble(), description="Heads and seeds of an ensemble.")
    length_bias: Literal["report", "regress_out"] = Field(
        "report",
        description="regress_out: take off every score what length alone explains on held-out pairs; cross-fitted.",
    )

    @property
    def fillers(self) -> Fillers:
        return Fillers(0.0)

    def objective_of(self, row_type: str) -> str:
        if row_type != "preference":
            raise StageError(f"reward needs preference rows (prompt, chosen, rejected), not {row_type} rows")
        return "reward"

    @property
    def outputs(self) -> tuple[str, ...]:
        heads = self.ensemble.heads
        return ("reward",) if heads == 1 else tuple(f"reward {number}" for number in range(heads))

    def figures(self, result: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return dict(result.get("pairs", {}).get("metrics", {}))

    def check(self) -> list[Problem]:
        found = super().check()
        if self.tasks:
            found.append(Problem("tasks", "preferences are learnt as one task", "leave tasks out, or take stage sft"))
        if self.length_bias == "regress_out" and self.validation is None:
            what = "what length explains is measured on held-out pairs, and there are none"
            found.append(Problem("length_bias", what, "set validation"))
        return found

    def refuse(self, row: Row) -> None:
        """StageError for a row whose margin or tie is none."""
        self.margin_of(row)
        self.better_of(row)

    def margin_of(self, row: Row) -> float:
        """By how much the score of chosen is to lead; 0 for a tie."""
        if self.margin is None or self.better_of(row) != 1:
            return 0.0
        value = value_at(row, self.margin)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise StageError(
                f"reward: row {row['id']} has {value!r} at {self.margin}; a margin is a number from 0 upwards"
            )
        return float(value)

    def better_of(self, row: Row) -> float:
        """The probability that chosen is the better answer: 1, or 0.5 for a tie."""
        value = value_at(row, self.ties) if self.ties else None
        if value not in (None, True, False):
            raise StageError(f"reward: row {row['id']} has {value!r} at {self.ties}; a tie is true or false")
        return 0.5 if value else 1.0

    def trained(self, job: Job) -> Trained:
        """Train the members of an ensemble of seeds, and last the model that takes them in."""
        from tilth.train.launch import launch

        others = [self._member(job, number) for number in range(1, self.ensemble.seeds)]
        for other in others:
            launch(other)
        trained = launch(replace(job, members=tuple(other.out.url for other in others)))
        job.out.remove(MEMBERS)
        if cut := trained.counts["cut"]:
            ui.reporter().say(
                f"{job.name}: {cut} of {trained.counts['rows']} pairs are longer than max_length {self.max_length} "
                "and lost the beginning of their prompt"
            )
        return trained

    def _member(self, job: Job, number: int) -> Job:
        seed = self.optimisation.seed + number
        changed = {"optimisation": self.optimisation.model_copy(update={"seed": seed}), "ensemble": self._alone}
        return replace(
            job,
            name=f"{job.name}-{number}",
            stage=job.stage.model_copy(update=changed),
            fingerprint=digest([job.fingerprint, number]),
            out=job.out.sub(f"{MEMBERS}/{number}"),
        )

    @property
    def _alone(self) -> Ensemble:
        return self.ensemble.model_copy(update={"seeds": 1})
