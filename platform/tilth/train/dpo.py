"""Direct preference optimisation: a language model learns which of two answers is the better one."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from tilth.errors import Problem, StageError
from tilth.train.base import Training
from tilth.train.config import Fillers


class Dpo(Training):
    """DPO by TRL (Rafailov et al. 2023, arXiv:2305.18290) on preference rows.

    The reference is the model as it begins: with an adapter the same weights and the adapter switched off, else a
    copy. loss: sigmoid is DPO's own, ipo that of Azar et al. 2023 (arXiv:2310.12036), hinge that of SLiC (Zhao et
    al. 2023, arXiv:2305.10425). A pair whose prompt alone fills max_length is not learnt from; `rows_seen` counts
    the others. Where rows are missing to a whole batch, a step is that much weaker; its figures are of those it has.
    """

    beta: float = Field(0.1, gt=0, description="How much a departure from the reference costs.")
    loss: Literal["sigmoid", "ipo", "hinge"] = Field("sigmoid", description="Loss of a difference of log-ratios.")

    @property
    def fillers(self) -> Fillers:
        """Two empty answers each, which are as likely to the model as to its reference."""
        return Fillers({"sigmoid": math.log(2), "hinge": 1.0, "ipo": (0.5 / self.beta) ** 2}[self.loss])

    def objective_of(self, row_type: str) -> str:
        if row_type != "preference":
            raise StageError(f"dpo needs preference rows (prompt, chosen, rejected), not {row_type} rows")
        return "preference"

    def check(self) -> list[Problem]:
        found = [*super().check(), *self.model.without_reference()]
        if self.tasks:
            found.append(Problem("tasks", "preferences are learnt as one task", "leave tasks out, or take stage sft"))
        return found
