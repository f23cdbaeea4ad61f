"""What answers mean and how much they differ among themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pydantic import Field

from tilth.config import EXECUTION, ModelRef
from tilth.data.embeddings import DEFAULT_MODEL, embedder
from tilth.data.schema import Row
from tilth.data.transform import Inputs
from tilth.evaluate.measures.base import Metric, Statistics, Terms, compared


class Similarity(Metric):
    """Cosine of the sentence embeddings of answer and reference (Reimers and Gurevych 2019), the mean over rows.

    Of several references the nearest counts. A model of sentences sees what a text is about, not whether it is right.
    """

    reads: ClassVar[tuple[str, ...]] = ("answers",)
    best: ClassVar[float | None] = 1.0

    model: ModelRef = Field(DEFAULT_MODEL, description="Sentence embedding model: hub name, directory or @stage.")
    batch_tokens: int | None = Field(
        None, ge=256, json_schema_extra=EXECUTION, description="Padded tokens run at once; none: fit for the device."
    )

    def load(self, inputs: Inputs) -> Callable[[list[Row]], list[Terms]] | None:
        encode = embedder(inputs.model(self.model), self.batch_tokens).encode

        def cosines(rows: list[Row]) -> list[Terms]:
            pairs = list(compared(rows, self.kind))
            vectors = iter(encode([text for answer, references in pairs for text in (answer, *references)]))
            found = []
            for _, references in pairs:
                own = next(vectors)
                found.append([max(round(float(own @ next(vectors)), 6) for _ in references)])
            return found

        return cosines

    def figures(self, rows: Sequence[Row]) -> Statistics:
        from tilth.data.bootstrap import mean

        return {"similarity": mean([value for [value] in self.terms(rows)])}


class Diversity(Metric):
    """Distinct n-grams and self-BLEU of all answers together (see `tilth.data.diversity`); told beside the figures.

    It has no interval: resampled rows repeat texts, and would look less diverse than any texts are.
    """

    reads: ClassVar[tuple[str, ...]] = ("answers",)

    sample: int = Field(200, ge=2, description="Answers that self-BLEU compares; figures of one size can be compared.")
    seed: int = Field(0, ge=0, description="Seed of that sample.")

    def figures(self, rows: Sequence[Row]) -> Statistics:
        return {}

    def detail(self, rows: Sequence[Row]) -> dict[str, Any]:
        from tilth.data.diversity import distinct_n, self_bleu

        texts = [answer for row in rows for answer in row["meta"]["answers"]]
        found = {f"distinct_{n}": round(distinct_n(texts, n), 6) for n in (1, 2, 3)}
        return {"diversity": {**found, "self_bleu": round(self_bleu(texts, sample=self.sample, seed=self.seed), 4)}}
