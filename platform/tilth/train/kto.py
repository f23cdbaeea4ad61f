"""Learning from answers that are each good or bad by themselves."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tilth.errors import Problem, StageError
from tilth.train.base import Training
from tilth.train.config import Fillers


class Kto(Training):
    """KTO by TRL (Ethayarajh et al. 2024, arXiv:2402.01306): of a preference row both answers, apart from each other.

    loss: kto holds every answer against a reference point, the divergence from the reference model over `exchange`
    answers whose prompts are exchanged, which TRL takes over the micro-batches of all workers together; apo_zero
    (D'Oosterlinck et al. 2024, arXiv:2408.06266) needs no such point. An answer whose prompt alone fills max_length is
    not learnt from.
    """

    version: ClassVar[int] = 2  # answers that only fill up a step move no reference point

    beta: float = Field(0.1, gt=0, description="How much a departure from the reference costs.")
    loss: Literal["kto", "apo_zero"] = Field("kto", description="With a reference point, or without one.")
    exchange: int = Field(8, ge=2, description="Answers of a reference point: the workers' micro-batches together.")
    desirable_weight: float = Field(1.0, gt=0, description="Weight of the losses of better answers.")
    undesirable_weight: float = Field(1.0, gt=0, description="Weight of the losses of worse answers.")

    @property
    def micro_batch_counts(self) -> bool:
        return self.loss == "kto"

    @property
    def fillers(self) -> Fillers:
        """Their loss, which moves with the reference point, and their rewards the trainer takes out itself."""
        return Fillers(0.0, figures=False)

    def objective_of(self, row_type: str) -> str:
        if row_type != "preference":
            raise StageError(f"kto needs preference rows (prompt, chosen, rejected), not {row_type} rows")
        return "unpaired"

    def check(self) -> list[Problem]:
        found = [*super().check(), *self.model.without_reference()]
        if self.tasks:
            found.append(Problem("tasks", "answers are learnt as one task", "leave tasks out, or take stage sft"))
        batches = self.scale.batches(self.optimisation.global_batch)
        if self.loss == "kto" and batches and (together := batches.micro * batches.workers) != self.exchange:
            what = f"{self.exchange} answers share a reference point, but the workers take {together} at once"
            found.append(
                Problem("exchange", what, f"set it to {together}, or scale.micro_batch so that they take as many")
            )
        if self.loss == "kto" and self.scale.min_workers not in (None, self.scale.workers):
            what = "with fewer workers fewer answers would share a reference point"
            found.append(Problem("scale.min_workers", what, "leave it out, or take loss: apo_zero"))
        return found
