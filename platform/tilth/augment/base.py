"""The two bases that augmenters and filters stand on; counting, lineage, seeds and rejects are done here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tilth.data.clean import bad_character, storable
from tilth.data.records import place_answer
from tilth.data.schema import NEW, Row, added, row_seed
from tilth.data.texts import text_of, text_or_none
from tilth.data.transform import Inputs, RowsFunction, Transform
from tilth.errors import StageError

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


@dataclass(frozen=True)
class Sample:
    """A row to make variants of."""

    id: str
    text: str
    label: str | None
    rng: random.Random = field(repr=False, compare=False)
    row: Row = field(repr=False)


@dataclass(frozen=True)
class Variant:
    """A new text; `reason` where the augmenter itself rejects it, `meta` for what it measured.

    `changes` are other columns that are not the parent's, such as the label of a counterfactual. Answers are placed
    anew in a changed context.
    """

    text: str
    reason: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)


VariantsFunction = Callable[[list[Sample]], Sequence[Sequence[Variant | str]]]


class Augmenter(Transform):
    """Adds rows made from those that the stage is given. Write `load_variants`; `eda.py` is the shortest one."""

    sees_parents: ClassVar[bool] = False

    name: str = Field("", pattern=r"^[a-z0-9_-]*$", description="Name in lineage and reports; default: its kind.")
    field: str = Field("text", description="The column that is changed.")
    variants: int = Field(1, ge=1, le=64, description="New rows for each original.")
    seed: int = Field(0, ge=0, description="Seed; each row derives its own from it.")

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        """The one method of an augmenter: samples → for each, its variants. Load models here."""
        raise TypeError(f"{type(self).__name__} must define load_variants()")

    @property
    def via(self) -> str:
        """The name that lineage carries."""
        return self.name or self.kind.rpartition(":")[2].lower()

    @property
    def made_by(self) -> str | None:
        """Model or rule set recorded with each new row."""
        return str(getattr(self, "model", None) or self.kind)

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        return self.adding(self.load_variants(inputs))

    def adding(self, make: VariantsFunction) -> RowsFunction:
        """The function on rows for one on samples. An augmenter with a `fit` calls it from a `load` of its own."""

        def augment(rows: list[Row]) -> list[Row]:
            samples = [self._sample(row) for row in rows if not row.get(NEW) and row["reason"] is None]
            made = make(samples)
            if len(made) != len(samples):
                raise StageError(f"{self.kind} gave variants of {len(made)} rows when asked for {len(samples)}")
            children = [c for sample, texts in zip(samples, made, strict=True) for c in self._children(sample, texts)]
            return [*rows, *children]

        return augment

    def _sample(self, row: Row) -> Sample:
        seed = row_seed(self.seed, row["id"], self.via)
        return Sample(row["id"], row[self.field], row.get("label"), random.Random(seed), row)

    def _children(self, sample: Sample, texts: Sequence[Variant | str]) -> Iterable[Row]:
        for number, item in enumerate(texts):
            variant = Variant(item) if isinstance(item, str) else item
            seed = row_seed(self.seed, sample.id, self.via)
            text = storable(variant.text)
            changes = {**variant.changes, self.field: text}
            child = added(sample.row, self.via, number, seed, self.made_by, **changes)
            child |= {"reason": variant.reason or unfit(variant.text), "meta": dict(variant.meta)}
            yield {**child, **_answers(child, changes)}


def _answers(row: Row, changes: Iterable[str]) -> dict[str, Any]:
    """Where the answers of a row now are whose context was changed, or that one of them is lost."""
    if not row.get("answers") or {"context", "answers"}.isdisjoint(changes):
        return {}
    placed = [place_answer(answer, row["context"]) for answer in row["answers"]]
    if None in placed:  # the answer is not quoted: it may be what was masked
        return {"reason": row["reason"] or "answer_lost: the new context does not hold it"}
    return {"answers": placed}


def unfit(text: str) -> str | None:
    """Why a new text is none, whoever made it: nothing to read, or characters that no row may hold."""
    if not text.strip():
        return "empty"
    return bad_character(text)


@dataclass(frozen=True)
class Candidate:
    """An added row before a filter, beside the text that it was made from; None where it was made from no row."""

    text: str
    parent_text: str | None
    label: str | None
    row: Row = field(repr=False)


@dataclass(frozen=True)
class Verdict:
    """`reason` is None for a row that stays, else `name: detail`; `meta` is recorded with the row either way.

    `changes` are columns of the row that the filter writes anew, such as a text with names masked; `usage` are the
    tokens that the verdict cost, added to those of the row.
    """

    reason: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)


KEEP = Verdict()
VerdictsFunction = Callable[[list[Candidate]], Sequence[Verdict]]


class Filter(Transform):
    """Drops rows that were added in this stage, for a named reason; those it was given stay. Write `load_verdicts`."""

    field: str = Field("text", description="The column that is judged.")

    def load_verdicts(self, inputs: Inputs, fitted: Fitted) -> VerdictsFunction:
        """The one method of a filter: candidates → for each, its verdict. Load models here."""
        raise TypeError(f"{type(self).__name__} must define load_verdicts()")

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        judge = self.load_verdicts(inputs, fitted)

        def gate(rows: list[Row]) -> list[Row]:
            by_id = {row["id"]: row for row in rows}
            pending = [row for row in rows if row.get(NEW) and row["reason"] is None]
            verdicts = judge([self._candidate(row, by_id.get(row["parent"])) for row in pending])
            if len(verdicts) != len(pending):
                raise StageError(f"{self.kind} gave {len(verdicts)} verdicts on {len(pending)} rows")
            for row, verdict in zip(pending, verdicts, strict=True):
                row.update(verdict.changes, reason=verdict.reason, meta=_told(row["meta"], verdict))
                row.update(_answers(row, verdict.changes))
            return rows

        return gate

    def _candidate(self, row: Row, parent: Row | None) -> Candidate:
        return Candidate(text_of(row, self.field), text_or_none(parent, self.field), row.get("label"), row)


def _told(meta: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    """What is recorded with a row after a verdict."""
    told = {**meta, **verdict.meta}
    if verdict.usage:
        before = meta.get("usage", {})
        told["usage"] = before | {name: before.get(name, 0) + count for name, count in verdict.usage.items()}
    return told
