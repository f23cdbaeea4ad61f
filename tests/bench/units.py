"""Work of the ledger that leaves a mark for each unit: how fast each worker went, and what was computed twice."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq

from tests.bench.paired import Facts
from tests.bench.result import banking_texts
from tilth.data.chain import Chain
from tilth.data.dataset import Dataset, Shard
from tilth.data.ledger import Unit
from tilth.data.schema import Row, original, to_table
from tilth.data.transform import Transform
from tilth.data.work import Leg, LegFunction
from tilth.storage import Store


@dataclass(frozen=True)
class Mark:
    """A worker has done with `rows` rows, at `wall` seconds of the clock and `cpu` seconds of its own CPU time."""

    worker: int
    rows: int
    wall: float
    cpu: float
    unit: int = -1

    @staticmethod
    def now(rows: int, unit: int = -1) -> Mark:
        return Mark(os.getpid(), rows, time.time(), time.process_time(), unit)


@dataclass(frozen=True)
class Marked:
    """`tilth.data.work.Work` around a chain without pools: its only leg is this, which leaves marks in a file."""

    chain: Chain
    marks: str
    #: mark units when they begin, not when they are computed
    begun: bool = False
    resources: ClassVar[None] = None

    @property
    def row_type(self) -> str:
        return self.chain.row_type

    @property
    def legs(self) -> tuple[Leg, ...]:
        return (self,)

    @property
    def in_flight(self) -> int:
        return self.chain.legs[0].in_flight

    def load(self) -> LegFunction:
        (leg,) = self.chain.legs
        run = leg.load()

        def marked(unit: Unit, rows: list[Row]) -> Iterable[Row]:
            if self.begun:
                self._mark(unit)
            found = run(unit, rows)
            if not self.begun:
                self._mark(unit)
            return found

        return marked

    def _mark(self, unit: Unit) -> None:
        with open(self.marks, "a") as handle:
            handle.write(json.dumps(asdict(Mark.now(len(unit), unit.index))) + "\n")

    def inputs(self, unit: Unit) -> int:
        return self.chain.inputs(unit)

    def poisoned(self, unit: Unit, why: str) -> list[Row]:
        return self.chain.poisoned(unit, why)


def read_marks(path: Path) -> list[Mark]:
    return [Mark(**json.loads(line)) for line in path.read_text().splitlines()]


def steady(marks: Sequence[Mark]) -> Facts:
    """Rows a second of all workers together, each from its first mark to its last: no loading, no waiting at the end.

    "cpu_rate" is per second of a worker's CPU time.
    """
    by_worker = defaultdict(list)
    for mark in marks:
        by_worker[mark.worker].append(mark)
    rate, rows, cpu = 0.0, 0, 0.0
    for found in by_worker.values():
        found.sort(key=lambda mark: mark.wall)
        done = sum(mark.rows for mark in found[1:])
        if done:
            rate += done / (found[-1].wall - found[0].wall)
            rows, cpu = rows + done, cpu + found[-1].cpu - found[0].cpu
    return {"rate": rate, "cpu_rate": rows / cpu, "workers": len(by_worker)}


def dataset_at(folder: Path, rows: int) -> Dataset:
    """A finished dataset of `rows` questions, one shard."""
    texts = banking_texts(rows)
    table = to_table([original(f"r{n:06d}", "train", {"text": text}) for n, text in enumerate(texts)], "text")
    store = Store.at(folder)
    store.write_with("data/train-00000.parquet", lambda handle: pq.write_table(table, handle))
    shard = Shard("data/train-00000.parquet", "train", rows, 0, "")
    return Dataset(store, "text", (shard,), (), {"inputs": rows, "accepted": rows})


def marked(source: Dataset, marks: Path, *steps: Transform) -> Marked:
    return Marked(Chain(source.store, source.row_type, steps), str(marks))


def quiet() -> None:
    """No progress bars among the answers of a worker."""
    from tilth import ui

    ui.use(ui.Reporter("plain"))
    sys.stdout.flush()
