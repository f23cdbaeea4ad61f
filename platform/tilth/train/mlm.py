"""Adapting an encoder to the user's own texts by masked language modelling."""

from __future__ import annotations

from pydantic import Field

from tilth.errors import StageError
from tilth.train.base import Training


class Mlm(Training):
    """Masked language modelling with whole words, before an encoder fills gaps or is fine-tuned.

    Task-adaptive pretraining, Gururangan et al. 2020, arXiv:2004.10964; conditioned on labels it is the proposer
    of Wu et al. 2019, arXiv:1812.06705, see `tilth.data.conditioning.label_prefix`.
    """

    label_conditional: bool = Field(False, description="Put each row's label before its text; it is never masked.")
    mask_rate: float = Field(0.15, gt=0, lt=1, description="Share of the words that are asked for.")

    def objective_of(self, row_type: str) -> str:
        if row_type not in ("text", "labelled"):
            raise StageError(f"mlm needs text or labelled rows, not {row_type} rows")
        if self.label_conditional and row_type != "labelled":
            raise StageError("mlm: label_conditional needs labelled rows, not text rows; set label_conditional: false")
        return "masked_lm"

    def conditioned_on(self, row_type: str, objective: str) -> bool:
        return self.label_conditional
