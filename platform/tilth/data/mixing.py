"""The work of stage `mix`: rows of each task renamed in units, and the choice among all of them."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tilth.data.chain import UnitReader, cut
from tilth.data.dataset import Dataset
from tilth.data.finish import Verdicts
from tilth.data.ledger import Ledger, Unit
from tilth.data.schema import PAYLOADS, SPLITS, Row
from tilth.data.seen import accepted
from tilth.data.split import place
from tilth.errors import StageError
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.data.mix import Mix
    from tilth.data.work import Leg, LegFunction


def plan(sources: Mapping[str, Dataset]) -> list[Unit]:
    """The units of every task, one task after another."""
    parts = [(task, unit) for task, dataset in sources.items() for unit in cut(dataset)]
    return [
        Unit(index, json.dumps([task, unit.source]), unit.start, unit.stop) for index, (task, unit) in enumerate(parts)
    ]


@dataclass(frozen=True)
class Mixing:
    """Gives the rows of a unit their task. See `tilth.data.work.Work`."""

    row_type: str
    stores: Mapping[str, Store]
    stage: Mix
    resources: ClassVar[None] = None
    in_flight: ClassVar[int] = 1

    @property
    def legs(self) -> tuple[Leg, ...]:
        return (self,)

    def load(self) -> LegFunction:
        return lambda unit, rows: self._rows(unit)

    def _rows(self, unit: Unit) -> list[Row]:
        task, shard = json.loads(unit.source)
        rows = UnitReader(self.stores[task]).rows(Unit(unit.index, shard, unit.start, unit.stop))
        return [self._placed(_named(row, task), task) for row in rows]

    def _placed(self, row: Row, task: str) -> Row:
        """The row where its task belongs: to training, or held out."""
        cluster = self.stage.clusters.get(task)
        if cluster is None or row["split"] == "test":
            return row
        if self.stage.held_out_rows == "all":
            return {**row, "split": "test", "meta": {**row["meta"], "held_out_from": row["split"]}}
        return {**row, "reason": f"held_out: cluster {cluster} is for evaluation, this row is of {row['split']}"}

    def inputs(self, unit: Unit) -> int:
        return len(unit)

    def poisoned(self, unit: Unit, why: str) -> list[Row]:
        return [{**row, "reason": why} for row in self._rows(unit)]


def _named(row: Row, task: str) -> Row:
    """The row under its task: ids of two datasets may be the same, within the mixture none is."""
    names = {name: row[name] and f"{task}/{row[name]}" for name in ("id", "root", "parent")}
    meta: dict[str, Any] = {**row["meta"], "task": row["task"]} if row["task"] not in (None, task) else row["meta"]
    return {**row, **names, "task": task, "meta": meta}


def chosen(ledger: Ledger, row_type: str, stage: Mix) -> Verdicts:
    """Reasons for rows that are held out too, and for the training rows that are too many of their task.

    It takes a few hundred bytes of memory for each training row and for each that is held out.
    """
    copied, reasons = _copied(ledger, row_type), dict[str, str]()
    train: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for _, batch in accepted(ledger, ["id", "root", "task", "split"]):
        for row in batch.to_pylist():
            if why := _why(row, copied):
                reasons[row["id"]] = why
            elif row["split"] == "train":
                train[row["task"]].append((place(stage.seed, row["root"], "mix"), row["id"]))
    quotas = stage.quotas({task: len(rows) for task, rows in train.items()})
    if train and not any(quotas.values()):
        raise StageError(
            f"mix: rows={stage.rows} shared over {len(quotas)} tasks by size and weight leaves none of them a row; "
            "raise rows, or the weights of small tasks"
        )
    return Verdicts(reasons | {
        row_id: f"not_sampled: over {quotas[task]:,} training rows of its task"
        for task, rows in train.items()
        for _, row_id in sorted(rows)[quotas[task] :]
    })  # fmt: skip


def _why(row: Row, copied: Mapping[str, str]) -> str | None:
    """Why a row is a duplicate, if it is: what was made of one goes with it."""
    if twin := copied.get(row["id"]):
        return f"duplicate: of {twin}"
    twin = copied.get(row["root"])
    return twin and f"duplicate: its original is one of {twin}"


def _copied(ledger: Ledger, row_type: str) -> dict[str, str]:
    """The rows that show what a row of test, or then of validation, shows: id, and that of the other with its split.

    Each dataset is split by itself, so that a text of two of them may be in the test rows of one alone.
    """
    held: dict[str, dict[bytes, str]] = {"test": {}, "validation": {}}
    for row_id, split, content in _contents(ledger, row_type, tuple(held)):
        held[split].setdefault(content, row_id)
    found: dict[str, str] = {}
    for row_id, split, content in _contents(ledger, row_type, SPLITS[:2]) if any(held.values()) else ():
        before = ("test",) if split == "validation" else held
        if twin := next((f"{held[name][content]} ({name})" for name in before if content in held[name]), None):
            found[row_id] = twin
    return found


def _contents(ledger: Ledger, row_type: str, splits: Sequence[str]) -> Iterator[tuple[str, str, bytes]]:
    """Id, split, and BLAKE2b of what a model is shown, of every accepted row of these splits."""
    shown = [name for name in PAYLOADS[row_type] if name != "label"]
    for _, batch in accepted(ledger, ["id", "split", *shown]):
        columns = [batch[name].to_pylist() for name in ("id", "split", *shown)]
        for row_id, split, *given in zip(*columns, strict=True):
            if split in splits:
                # `repr` tells apart whatever differs
                yield row_id, split, hashlib.blake2b(repr(given).encode(), digest_size=16).digest()
