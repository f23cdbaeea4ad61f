"""Beside the rows that a model was trained on: which scored rows it may have seen, and what an error resembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tilth.config import Component, ModelRef
from tilth.data.embeddings import DEFAULT_MODEL
from tilth.data.schema import Row
from tilth.data.texts import whole_text
from tilth.data.transform import Inputs
from tilth.recipe import TextsRef

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset

_QUOTED = 400  # characters of a row's text that are kept


class TrainedOn(Component):
    """The rows that models were trained on. Scored rows that they hold are counted and scored apart.

    A scored row counts as contaminated where a training row has a run of 13 of its words (GPT-3, Brown et al. 2020,
    arXiv:2005.14165, appendix C), or all of a shorter one, as in the gate `decontaminate`. The training rows nearest
    to each error, by sentence embeddings, are told with where they come from.
    """

    data: TextsRef = Field(description="The dataset that was trained on, as it was before any stage `pack`.")
    split: Literal["train", "validation", "test"] = Field("train", description="Its split.")
    ngram: int = Field(13, ge=3, le=64, description="Words in a run.")
    share: float = Field(0.0, ge=0, le=1, description="Share of a scored row's runs; 0: one is enough.")
    common: int = Field(10, ge=1, description="Runs that more scored rows share are wording, and do not count.")
    nearest: int = Field(3, ge=0, le=20, description="Training rows told with each error; 0: none.")
    model: ModelRef = Field(DEFAULT_MODEL, description="Sentence embedding model: hub name or directory.")


@dataclass(frozen=True)
class Seen:
    """The training row that shares most with a scored one: its id, the words in a run (0: all), the share of runs."""

    training: str
    size: int
    share: float


def contaminated(rows: Sequence[Row], training: Dataset, how: TrainedOn) -> dict[str, Seen]:
    """Scored rows that training rows hold, by id."""
    from tilth.data.overlap import Index

    index = Index.of([whole_text(row) for row in rows], how.ngram, how.common)
    found: dict[str, Seen] = {}
    for row in training.rows():
        for place, share in index.hits(whole_text(row), how.share):
            known = found.get(rows[place]["id"])
            if known is None or share > known.share:
                found[rows[place]["id"]] = Seen(row["id"], int(index.sizes[place]), round(share, 4))
    return found


class Neighbours:
    """Training rows by meaning. Embeds them all once, some hundreds a second on a core."""

    def __init__(self, training: Dataset, how: TrainedOn, inputs: Inputs) -> None:
        from tilth.data.vectors import vectors_of

        self.how, self.inputs = how, inputs
        self.rows = list(training.rows())
        title = "evaluate: embedding training rows"
        self.vectors = vectors_of([whole_text(row) for row in self.rows], how.model, inputs, title)

    def of(self, rows: Sequence[Row]) -> list[list[dict[str, Any]]]:
        """For each row the training rows nearest to it: {id, cosine, text, label, via, parent, root}."""
        from tilth.data.vectors import vectors_of

        if not rows or not self.rows:
            return [[] for _ in rows]
        own = vectors_of([whole_text(row) for row in rows], self.how.model, self.inputs, "evaluate: embedding errors")
        cosines = own @ self.vectors.T
        order = (-cosines).argsort(axis=1, kind="stable")[:, : self.how.nearest]
        return [
            [self._told(place, float(line[place])) for place in places]
            for line, places in zip(cosines, order.tolist(), strict=True)
        ]

    def _told(self, place: int, cosine: float) -> dict[str, Any]:
        row = self.rows[place]
        lineage = {name: row[name] for name in ("id", "via", "parent", "root")}
        return {**lineage, "cosine": round(cosine, 4), "text": quoted(whole_text(row)), "label": row.get("label")}


def quoted(text: str) -> str:
    """As much of a text as is kept."""
    return text if len(text) <= _QUOTED else text[: _QUOTED - 1] + "…"
