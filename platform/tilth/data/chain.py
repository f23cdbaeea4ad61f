"""The work of a data stage: a chain of transforms over rows of a finished dataset, in units."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from tilth.data.dataset import Dataset
from tilth.data.guard import beside_parents, guarded
from tilth.data.ledger import Unit
from tilth.data.schema import Row, from_table
from tilth.data.transform import Inputs, Resources, RowsFunction, Transform
from tilth.errors import StageError
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.data.transform import Fitted
    from tilth.data.work import Leg, LegFunction, RowsLeg

UNITS_WANTED = 64
UNIT_ROWS = (8, 512)
#: the driver schedules and remembers each unit: of very large data a unit takes more rows than that
MOST_UNITS = 100_000


def cut(dataset: Dataset, unit_rows: int | None = None) -> list[Unit]:
    """The units of a dataset. Their size depends on the data alone, so that a resumed run cuts it alike."""
    low, high = UNIT_ROWS
    least = math.ceil(len(dataset) / MOST_UNITS)
    size = unit_rows or max(least, min(high, max(low, math.ceil(len(dataset) / UNITS_WANTED))))
    spans = [
        (shard.name, start, min(start + size, shard.rows))
        for shard in dataset.shards
        for start in range(0, shard.rows, size)
    ]
    return [Unit(index, *span) for index, span in enumerate(spans)]


@dataclass(frozen=True)
class Chain:
    """Transforms in order, applied to each unit. Picklable; see `tilth.data.work.Work`."""

    store: Store
    row_type: str
    steps: tuple[Transform, ...]
    context: Inputs = field(default_factory=Inputs)
    fitted: tuple[Fitted, ...] = ()

    @property
    def legs(self) -> tuple[Leg, ...]:
        first, *others = stretches(self.steps, self.context, self.fitted)
        return (_Read(first, self.store), *others)

    def inputs(self, unit: Unit) -> int:
        return len(unit)

    def poisoned(self, unit: Unit, why: str) -> list[Row]:
        return [{**row, "reason": why} for row in UnitReader(self.store).rows(unit)]


@dataclass(frozen=True)
class Stretch:
    """Steps that the workers of one pool apply one after another. See `tilth.data.work.Leg`."""

    steps: tuple[Transform, ...]
    context: Inputs
    fitted: tuple[Fitted, ...] = ()

    @property
    def resources(self) -> Resources | None:
        return self.steps[0].resources if self.steps else None

    @property
    def in_flight(self) -> int:
        return max((step.in_flight for step in self.steps), default=1)

    def load(self) -> RowsLeg:
        apply = chained(self.steps, self.context, self.fitted)
        return lambda unit, rows: apply(rows)


@dataclass(frozen=True)
class Around:
    """A leg that does more than its stretch, by the same workers."""

    stretch: Stretch

    @property
    def resources(self) -> Resources | None:
        return self.stretch.resources

    @property
    def in_flight(self) -> int:
        return self.stretch.in_flight


@dataclass(frozen=True)
class _Read(Around):
    """The first stretch, which reads the rows of a unit."""

    store: Store

    def load(self) -> LegFunction:
        apply, reader = self.stretch.load(), UnitReader(self.store)
        return lambda unit, rows: apply(unit, reader.rows(unit))


def stretches(steps: Sequence[Transform], context: Inputs, fitted: Sequence[Fitted] = ()) -> list[Stretch]:
    """The steps cut where the next one has workers of its own; one stretch without steps where there are none."""
    states = fitted or [{} for _ in steps]
    parts = [list(part) for _, part in groupby(zip(steps, states, strict=True), lambda pair: pair[0].resources)]
    return [
        Stretch(tuple(step for step, _ in part), context, tuple(state for _, state in part)) for part in parts or [[]]
    ]


class UnitReader:
    """Reads the rows of a unit."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def rows(self, unit: Unit) -> list[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.store.open(unit.source, ahead=False) as handle, pq.ParquetFile(handle, pre_buffer=True) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            edges = [0, *(sum(sizes[: i + 1]) for i in range(len(sizes)))]
            groups = [i for i, (a, b) in enumerate(pairwise(edges)) if a < unit.stop and b > unit.start]
            table: pa.Table = file.read_row_groups(groups)
        rows = from_table(table.slice(unit.start - edges[groups[0]], len(unit)))
        if len(rows) != len(unit):
            raise StageError(f"{self.store.at_url(unit.source)} has fewer rows than its manifest says")
        return rows


def chained(steps: Sequence[Transform], context: Inputs, fitted: Sequence[Fitted] = ()) -> RowsFunction:
    """The steps loaded, as one function that checks after each that no row was lost, doubled or left without origin.

    A row on which a step raises is quarantined there, whoever is in its unit and wherever the step runs.
    """
    states = fitted or [{} for _ in steps]
    functions = [
        (beside_parents if step.sees_parents else guarded, _checked(step, step.load(context, state)))
        for step, state in zip(steps, states, strict=True)
    ]

    def apply(rows: list[Row]) -> list[Row]:
        for apart, function in functions:
            rows = apart(function, rows)
        return rows

    return apply


def looks_at_all(step: Transform) -> bool:
    """Whether a step decides over all rows together, after every unit."""
    return type(step).decide is not Transform.decide


def decided(
    steps: Sequence[Transform],
    rows: Callable[[], Iterable[Row]],
    context: Inputs,
    judged: Collection[str] | None = None,
) -> dict[str, str]:
    """Reasons by id of every step that looks at all rows together; the first reason of a row stands.

    `rows` gives them anew for each step. Of `judged` alone reasons are taken, where it is given.
    """
    reasons: dict[str, str] = {}
    for step in steps:
        if looks_at_all(step):
            found = step.decide((row for row in rows() if row["id"] not in reasons), context)
            reasons.update({name: why for name, why in found.items() if judged is None or name in judged})
    return reasons


def _checked(step: Transform, function: RowsFunction) -> RowsFunction:
    """The step's function, looked at after each call; one call at a time, unless the step is made for more."""
    turn = contextlib.nullcontext() if step.in_flight > 1 else threading.Lock()

    def call(rows: list[Row]) -> list[Row]:
        given = [row["id"] for row in rows]
        with turn:
            rows = function(rows)
        _verify(given, rows, step.kind)
        return rows

    return call


def _verify(given: list[str], rows: list[Row], name: str) -> None:
    """Every input row exactly once, every id once, every added row with a parent and a name for what made it."""
    seen = Counter(row["id"] for row in rows)
    if twice := [row_id for row_id, times in seen.items() if times > 1]:
        raise StageError(f"{name} returned row {twice[0]!r} {seen[twice[0]]} times; each row must come back once")
    if lost := [row_id for row_id in given if row_id not in seen]:
        raise StageError(f"{name} lost row {lost[0]!r}; set its reason instead of leaving it out")
    known = set(given)
    for row in rows:
        if row["id"] not in known and not (row["parent"] and row["via"]):
            raise StageError(f"{name} added row {row['id']!r} without parent and via; build it with schema.added()")
