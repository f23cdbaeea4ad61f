"""Meaning kept, words changed: a band of cosine similarity between an added row and its parent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tilth.augment.base import KEEP, Candidate, Filter, Verdict, VerdictsFunction
from tilth.config import EXECUTION, ModelRef
from tilth.data.embeddings import DEFAULT_MODEL, embedder
from tilth.data.transform import Inputs
from tilth.errors import Problem

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


class Similarity(Filter):
    """Keeps added rows whose sentence embedding is near the parent's, but not the same; rows without a parent stay.

    `meta.cosine` is recorded with every row that is judged, 4 decimals. Reasons: `meaning_lost`, `nothing_gained`.
    """

    model: ModelRef = Field(DEFAULT_MODEL, description="Sentence embedding model: hub name or directory.")
    min_cosine: float = Field(0.7, ge=-1.0, le=1.0, description="Below it, the meaning is lost.")
    max_cosine: float = Field(0.98, ge=-1.0, le=1.0, description="Above it, the row says nothing new; 1 keeps all.")
    batch_tokens: int | None = Field(
        None, ge=256, json_schema_extra=EXECUTION, description="Padded tokens run at once; none: fit for the device."
    )

    def check(self) -> list[Problem]:
        if self.min_cosine < self.max_cosine:
            return []
        return [Problem("min_cosine", f"must be below max_cosine: {self.min_cosine:g} and {self.max_cosine:g}")]

    def load_verdicts(self, inputs: Inputs, fitted: Fitted) -> VerdictsFunction:
        model = embedder(inputs.model(self.model), self.batch_tokens)

        def judge(candidates: list[Candidate]) -> list[Verdict]:
            pairs = [(c.text, c.parent_text) for c in candidates if c.parent_text is not None]
            vectors = model.encode([text for text, _ in pairs] + [parent for _, parent in pairs])
            cosines = iter((vectors[: len(pairs)] * vectors[len(pairs) :]).sum(axis=1))
            return [KEEP if c.parent_text is None else self._verdict(float(next(cosines))) for c in candidates]

        return judge

    def _verdict(self, cosine: float) -> Verdict:
        # float error moves the sixth decimal with the batch: rounded, a row is judged alike wherever it stands
        cosine = round(cosine, 4)
        reason = None
        if cosine < self.min_cosine:
            reason = f"meaning_lost: cosine {cosine:.3f} < {self.min_cosine:g}"
        elif cosine > self.max_cosine:
            reason = f"nothing_gained: cosine {cosine:.3f} > {self.max_cosine:g}"
        return Verdict(reason, {"cosine": cosine})
