"""Methods: ways to make rows with a language model. An author writes what to ask and what to make of the answers.

Two bases. A `RowMethod` makes rows from each row of a dataset, once. A `PoolMethod` works in rounds: it looks at the
seeds and at all that was accepted so far and says what to ask next, until the stage has enough. Both write `load`,
whose function turns asks into made rows; ids, lineage, seeds, tokens, gates and commits are done by the stage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tilth.config import Component
from tilth.data.clean import bad_character, map_texts, storable
from tilth.data.schema import PAYLOADS, Row, RowType, added, generated, original, row_seed
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.generate.base import Answer, Generate, Generator, total_usage

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset


@dataclass(frozen=True)
class Made:
    """A new row: its payload, `reason` where the method itself rejects it, and in `meta` what it measured."""

    payload: Mapping[str, Any]
    reason: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Yield:
    """All that came of one ask, and the answers that it cost."""

    made: Sequence[Made]
    answers: Sequence[Answer] = ()


#: Asks → for each, its yield. Thread-safe.
MakeFunction = Callable[[list[Row]], Sequence[Yield]]


@dataclass(frozen=True)
class Pool:
    """What a round may build on."""

    seeds: Sequence[Row]
    accepted: Sequence[Row]
    #: rows still wanted of each value that is to be balanced, where a step says so
    shortfall: Mapping[str, int] = field(default_factory=dict)


class Method(Component, family="method"):
    """Makes rows. `generator` is the stage's own, None where the method needs none."""

    #: row types of the dataset that it starts from
    takes: ClassVar[tuple[RowType, ...]] = ("text", "labelled", "completion", "chat")
    needs_generator: ClassVar[bool] = True

    name: str = Field("", pattern=r"^[a-z0-9_-]*$", description="Name in lineage and reports; default: its kind.")
    seed: int = Field(0, ge=0, description="Seed; each ask derives its own from it.")

    @property
    def makes(self) -> RowType:
        """The row type of what it makes."""
        return "completion"

    @property
    def via(self) -> str:
        """The name that lineage carries."""
        return self.name or self.kind.rpartition(":")[2].lower()

    def seeing(self, data: Dataset, inputs: Inputs) -> Method:
        """The method with what it has to know of all rows that it is given: asked once, before any of them is."""
        return self

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        """The function from asks to yields, called once in each worker: open the generator here."""
        raise TypeError(f"{type(self).__name__} must define load()")

    def seed_of(self, ask: Row, purpose: str = "") -> int:
        """The seed of an ask, for one of several purposes."""
        return row_seed(self.seed, ask["id"], f"{self.via}/{purpose}" if purpose else self.via)

    def summary(self, rows: Iterable[Row]) -> dict[str, float]:
        """Figures for the stage's metrics from all that was made, the dropped rows too."""
        return {}

    def row(self, ask: Row, number: int, made: Made, model: str | None) -> Row:
        """The row for what was made."""
        raise TypeError("derive from RowMethod or PoolMethod")


class RowMethod(Method, family="method"):
    """Makes rows from each training row of the dataset; a made row's parent is that row."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The splits whose rows it is given; others than train only where no model sees them."""
        return ("train",)

    @property
    def per_ask(self) -> int:
        """Rows that are made of one at most: by it the first portion of a dataset is cut where there is a target."""
        return 1

    def row(self, ask: Row, number: int, made: Made, model: str | None) -> Row:
        blank = dict.fromkeys(PAYLOADS[self.makes])
        row = added(ask, self.via, number, self.seed_of(ask), model, **{**blank, **made.payload})
        return {**row, "reason": made.reason, "meta": dict(made.meta)}


class PoolMethod(Method, family="method"):
    """Works in rounds over a pool that grows with what is accepted."""

    def plan(self, number: int, pool: Pool, wanted: int) -> list[Row]:
        """What to ask in round `number` (from 0) so that about `wanted` rows come of it; none: the method is done.

        Build asks with `self.ask`. The same pool must give the same asks: a resumed run plans again. Where the data
        holds rows by this method already, the stage gives the asks other ids.
        """
        raise TypeError(f"{type(self).__name__} must define plan()")

    def ask(self, number: int, index: int, parent: Row | None = None, **meta: Any) -> Row:
        """One ask. `parent` is the row that what is made of it descends from; `meta` must be JSON."""
        blank = original(f"{self.via}-{number:03d}.{index:05d}", "train", {}, meta)
        if parent is None:
            return blank
        payload = {name: parent.get(name) for name in PAYLOADS[self.makes]}
        return {**blank, **payload, "parent": parent["id"], "root": parent["root"], "task": parent["task"]}

    def row(self, ask: Row, number: int, made: Made, model: str | None) -> Row:
        blank = dict.fromkeys(PAYLOADS[self.makes])
        row = generated(f"{ask['id']}.{number}", self.via, self.seed_of(ask), model, {**blank, **made.payload})
        if ask["parent"]:
            row = {**row, "parent": ask["parent"], "root": ask["root"], "task": ask["task"]}
        return {**row, "reason": made.reason, "meta": dict(made.meta)}


def reads(method: Method) -> tuple[str, ...]:
    """The splits of the dataset that a method is given."""
    return method.reads if isinstance(method, RowMethod) else ("train",)


def rows_of(method: Method, model: str | None, asks: Sequence[Row], yields: Sequence[Yield]) -> list[Row]:
    """All rows that were made of the asks. The first row of an ask carries in `meta.usage` the tokens that it cost."""
    found = []
    for ask, result in zip(asks, yields, strict=True):
        made = result.made or [Made({}, "nothing: no row came of this ask")]
        rows = [_stored(method.row(ask, number, item, model), method.makes) for number, item in enumerate(made)]
        rows[0]["meta"]["usage"] = total_usage(result.answers)
        found += rows
    return found


def _stored(row: Row, row_type: str) -> Row:
    """The row as it can be stored; with a reason where its payload held what none may, such as half a character."""
    texts: list[str] = []

    def clean(text: str) -> str:
        texts.append(text)
        return storable(text)

    payload = {name: map_texts(row[name], clean) for name in PAYLOADS[row_type]}
    why = row["reason"] or next(filter(None, map(bad_character, texts)), None)
    meta = json.loads(storable(json.dumps(row["meta"], ensure_ascii=False)))
    return {**row, **payload, "reason": why and storable(why), "meta": meta}


def opened(generator: Generator | None, inputs: Inputs) -> Generate:
    """The stage's generator, ready to be asked; StageError where a method that needs one was given none."""
    if generator is None:
        raise StageError("this method asks a model, but the stage has no generator")
    return generator.open(inputs)


def why_not(answer: Answer) -> str | None:
    """The reason for a row whose only answer is not whole: no answer, cut off, withheld or of another shape."""
    first = answer.first
    if answer.failure is not None:
        return f"quarantined/{answer.failure}"
    if first.whole:
        return None
    if first.finish == "length":
        return f"truncated: cut off after {first.tokens} tokens"
    if first.finish == "malformed":
        return f"quarantined/malformed: {first.text[:200]!r}"
    return "withheld: the server's filter took it"
