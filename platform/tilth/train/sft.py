"""Supervised fine-tuning: of a language model on texts, completions and conversations, or of a classifier."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tilth.errors import StageError
from tilth.train.base import Training


class Sft(Training):
    """Supervised fine-tuning by TRL, or of a classification head by transformers.

    A completion is learnt after its prompt, of a conversation the assistant's last turn, a text whole. Labelled
    rows are classified, or, as a language model's texts, generated after their label.
    """

    objective: Literal["auto", "language_model", "classification"] = Field(
        "auto", description="auto: classification for labelled rows, language_model for others."
    )

    def objective_of(self, row_type: str) -> str:
        if row_type == "preference":
            raise StageError("sft needs text, labelled, completion or chat rows, not preference rows")
        if self.objective == "classification" and row_type != "labelled":
            raise StageError(f"sft: classification needs labelled rows, not {row_type} rows")
        if self.objective != "auto":
            return self.objective
        return "classification" if row_type == "labelled" else "language_model"

    def conditioned_on(self, row_type: str, objective: str) -> bool:
        return row_type == "labelled" and objective == "language_model"
