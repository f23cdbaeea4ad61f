"""What a stage says at its end of all that it made: how diverse it is, and how it differs from the originals."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from tilth.config import EXECUTION, Component, ModelRef
from tilth.data.embeddings import DEFAULT_MODEL
from tilth.data.schema import Row, row_seed
from tilth.data.texts import text_or_none, whole_text
from tilth.data.transform import Inputs
from tilth.errors import Problem, StageError

_FACETS = ("labels", "lengths", "topics", "sentiment", "gender", "age", "religion", "ethnicity", "orientation")
FACETS = (*_FACETS, "disability", "identity")


class BiasReport(Component):
    """Distributions of labels, lengths, topics, sentiment and identity terms, made rows beside originals.

    See `tilth.data.bias` for the figures and what they can tell; `identity` stands for all six axes of identity.
    """

    field: str = Field("text", description="The column that is read; rows without it are read whole.")
    topics: int = Field(12, ge=2, le=64, description="Clusters of words.")
    sample: int = Field(20_000, ge=100, description="Rows of each side that are looked at, drawn by id.")
    seed: int = Field(0, ge=0, description="Seed of the draw and the clusters.")
    max_divergence: Mapping[str, float] = Field(
        default_factory=dict, description="Jensen-Shannon bits above which the stage fails, by facet or `identity`."
    )

    def check(self) -> list[Problem]:
        known = ", ".join(FACETS)
        return [
            Problem(f"max_divergence.{name}", f"there is no facet {name!r}", f"use one of: {known}")
            for name in self.max_divergence
            if name not in FACETS
        ]

    def measure(self, originals: Iterable[Row], synthetic: Iterable[Row]) -> dict[str, Any]:
        """The figures, as JSON-ready data for an artifact's `detail["bias"]`, with the lines of `exceeded`."""
        from tilth.data import bias

        found = bias.report(originals, synthetic, self.field, topics=self.topics, sample=self.sample, seed=self.seed)
        return {**found, "limits": dict(self.max_divergence), "exceeded": bias.exceeded(found, self.max_divergence)}

    def refuse(self, measured: Mapping[str, Any]) -> None:
        """StageError where a facet diverges by more than its limit."""
        if measured["exceeded"]:
            lines = "\n".join(measured["exceeded"])
            raise StageError(f"{lines}\nBalance what is made (a step `balance`, other seeds), or raise max_divergence")


class DiversityReport(Component):
    """Distinct n-grams, self-BLEU, Vendi score, coverage of the originals, and the map of verbs and nouns.

    Each figure is of at most `sample` rows, so that figures of runs of unlike size can be compared.
    """

    field: str = Field("text", description="The column that is read; rows without it are read whole.")
    sample: int = Field(2000, ge=10, description="Rows of each side that are looked at, drawn by id.")
    model: ModelRef = Field(DEFAULT_MODEL, description="Sentence embedding model: hub name or directory.")
    near: float = Field(0.7, gt=0, le=1, description="Cosine at which an original counts as covered.")
    verbs: bool = Field(True, description="Parse English sentences for the map of verbs and nouns.")
    batch_tokens: int | None = Field(
        None, ge=256, json_schema_extra=EXECUTION, description="Padded tokens run at once; none: fit for the device."
    )

    def measure(self, originals: Iterable[Row], synthetic: Iterable[Row], inputs: Inputs) -> dict[str, Any]:
        """The figures of both sides, as JSON-ready data for an artifact's `detail["diversity"]`; {} without made rows.

        originals and synthetic: rows, distinct_1 to distinct_3, self_bleu, vendi; coverage {covered, mean_distance,
        novelty_distance, near}; verb_nouns, see `diversity.verb_map`, with `parsed` texts that had such a pair.
        """
        from tilth.data import diversity
        from tilth.data.vectors import vectors_of

        sides = {"originals": self._drawn(originals), "synthetic": self._drawn(synthetic)}
        if not sides["synthetic"]:
            return {}
        vectors = {
            name: vectors_of(texts, self.model, inputs, f"diversity: embedding {name}", self.batch_tokens)
            for name, texts in sides.items()
        }
        found: dict[str, Any] = {
            name: {**_figures(texts), "vendi": round(diversity.vendi_score(vectors[name]), 3)}
            for name, texts in sides.items()
        }
        covered = diversity.coverage(vectors["originals"], vectors["synthetic"], self.near)
        found["coverage"] = {**{key: round(value, 4) for key, value in covered.items()}, "near": self.near}
        if self.verbs:
            pairs = diversity.verb_nouns(sides["synthetic"])
            found["verb_nouns"] = {"parsed": pairs.total(), "verbs": diversity.verb_map(pairs)}
        return found

    def _drawn(self, rows: Iterable[Row]) -> list[str]:
        drawn = heapq.nsmallest(self.sample, rows, key=lambda row: row_seed(0, row["id"], "diversity"))
        return [text_or_none(row, self.field) or whole_text(row) for row in drawn]


def _figures(texts: list[str]) -> dict[str, Any]:
    from tilth.data import diversity

    distinct = {f"distinct_{n}": round(diversity.distinct_n(texts, n), 4) for n in (1, 2, 3)}
    return {"rows": len(texts), **distinct, "self_bleu": round(diversity.self_bleu(texts), 2)}
