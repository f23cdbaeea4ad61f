"""The work of a data stage: a chain of transforms over rows of a finished dataset, in units."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from tilth.data.dataset import Dataset
from tilth.data.ledger import Unit
from tilth.data.schema import Row, from_table
from tilth.data.transform import Inputs, RowsFunction, Transform
from tilth.errors import StageError, TilthError
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.data.transform import Fitted

UNITS_WANTED = 64
UNIT_ROWS = (8, 512)
#: the driver schedules and remembers each unit: of very large data a unit takes more rows than that
MOST_UNITS = 100_000
#: share of a unit's rows that may raise before the fault is taken to be the transform's, not the rows'
POISON_SHARE = 0.25


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
    """Transforms in order, applied to each unit. Picklable; see `tilth.data.engine.Work`."""

    store: Store
    row_type: str
    steps: tuple[Transform, ...]
    context: Inputs = field(default_factory=Inputs)
    fitted: tuple[Fitted, ...] = ()

    @property
    def in_flight(self) -> int:
        return max((step.in_flight for step in self.steps), default=1)

    def load(self) -> Callable[[Unit], list[Row]]:
        apply = chained(self.steps, self.context, self.fitted)
        reader = UnitReader(self.store)
        return lambda unit: guarded(apply, reader.rows(unit))

    def inputs(self, unit: Unit) -> int:
        return len(unit)

    def poisoned(self, unit: Unit, why: str) -> list[Row]:
        return [{**row, "reason": why} for row in UnitReader(self.store).rows(unit)]


class UnitReader:
    """Reads the rows of a unit."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def rows(self, unit: Unit) -> list[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.store.open(unit.source) as handle, pq.ParquetFile(handle) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            edges = [0, *(sum(sizes[: i + 1]) for i in range(len(sizes)))]
            groups = [i for i, (a, b) in enumerate(pairwise(edges)) if a < unit.stop and b > unit.start]
            table: pa.Table = file.read_row_groups(groups)
        rows = from_table(table.slice(unit.start - edges[groups[0]], len(unit)))
        if len(rows) != len(unit):
            raise StageError(f"{self.store.at_url(unit.source)} has fewer rows than its manifest says")
        return rows


def chained(steps: Sequence[Transform], context: Inputs, fitted: Sequence[Fitted] = ()) -> RowsFunction:
    """The steps loaded, as one function that checks after each that no row was lost, doubled or left without origin."""
    states = fitted or [{} for _ in steps]
    functions = [_serial(step, step.load(context, state)) for step, state in zip(steps, states, strict=True)]

    def apply(rows: list[Row]) -> list[Row]:
        given = [row["id"] for row in rows]
        for step, function in zip(steps, functions, strict=True):
            rows = function(rows)
            _verify(given, rows, step.kind)
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


def _serial(step: Transform, function: RowsFunction) -> RowsFunction:
    """One call at a time, unless the step is made for more."""
    if step.in_flight > 1:
        return function
    lock = threading.Lock()

    def one_at_a_time(rows: list[Row]) -> list[Row]:
        with lock:
            return function(rows)

    return one_at_a_time


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


def _quarantined(row: Row, why: str) -> Row:
    return {**row, "reason": why}


def guarded(function: RowsFunction, rows: list[Row], failed_as: Callable[[Row, str], Row] = _quarantined) -> list[Row]:
    """Apply `function`; rows on which it raises are found by halving and quarantined with the error.

    `failed_as` gives the row that stands for one that raised; by default itself.

    When more than a quarter of the rows raise, the fault is not theirs: the first error ends the stage.
    """
    allowed = max(1, int(len(rows) * POISON_SHARE))
    failed: list[Row] = []

    def attempt(part: list[Row]) -> list[Row]:
        try:
            return function([{**row, "meta": dict(row["meta"])} for row in part])
        except TilthError:
            raise
        except Exception as error:
            if len(part) > 1:
                middle = len(part) // 2
                return attempt(part[:middle]) + attempt(part[middle:])
            failed.append(part[0])
            if len(failed) > allowed or _is_resource(error):
                raise StageError(f"{type(error).__name__}: {error} (at row {part[0]['id']})") from error
            return [failed_as(part[0], f"quarantined/{type(error).__name__}: {error}")]

    return attempt(rows)


def _is_resource(error: BaseException) -> bool:
    """Out of memory or disk: not a fault of the row."""
    return isinstance(error, MemoryError | OSError) or type(error).__name__ == "OutOfMemoryError"
