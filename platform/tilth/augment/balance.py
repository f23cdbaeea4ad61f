"""Balance: so many training rows of each label or topic, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from tilth.data.schema import ASIDE, LINEAGE, NEW, Row, row_seed, value_at
from tilth.data.transform import Inputs, RowsFunction, Transform
from tilth.errors import Problem

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


class Balance(Transform):
    """Drops added training rows of a value that has more than `at_most`, and tells which have fewer than `at_least`.

    Originals count and stay; those that the stage does not pass on (`keep_data`) do not count, but name values to top
    up. Which added rows stay is decided by a hash of their ids; those of earlier rounds go first. A stage that makes
    rows asks `shortfall` after each round and goes on until it is empty or a budget ends. Reason: `surplus`.
    """

    by: str = Field(
        "label", min_length=1, description="A column, or a dotted path into what a method recorded: meta.axes.topic."
    )
    at_most: int | None = Field(None, ge=0, description="Rows of a value beyond which added ones are dropped.")
    at_least: int | None = Field(None, ge=1, description="Rows of a value that a generating stage tops up to.")
    values: tuple[str, ...] = Field((), description="Values to top up even where no row has them yet.")
    seed: int = Field(0, ge=0, description="Seed of the hash.")

    def check(self) -> list[Problem]:
        if self.at_most is None and self.at_least is None:
            return [Problem("at_most", "there is neither at_most nor at_least", "set one of them")]
        if self.at_most is not None and self.at_least is not None and self.at_least > self.at_most:
            return [Problem("at_least", f"must not be above at_most: {self.at_least} and {self.at_most}")]
        if self.values and self.at_least is None:
            return [Problem("values", "are topped up to at_least, which is not set", "set at_least")]
        return []

    def columns(self) -> dict[str, str]:
        column = self.by.partition(".")[0]
        return {} if column in LINEAGE else {"by": column}

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        """Nothing to do within a unit: rows are counted all together, see `decide`."""
        return lambda rows: rows

    def decide(self, rows: Iterable[Row], inputs: Inputs) -> dict[str, str]:
        """Reasons by id for the surplus. Rows of other splits, and those without the value, neither count nor go."""
        if self.at_most is None:
            return {}
        counts: Counter[str] = Counter()
        added: list[tuple[bool, int, str, str]] = []
        for row, value in self._valued(rows):
            if row.get(ASIDE):
                continue
            counts[value] += 1
            if row["via"] is not None:
                added.append((bool(row.get(NEW)), row_seed(self.seed, row["id"], "balance"), row["id"], value))
        taken = counts - Counter(value for *_, value in added)
        reasons = {}
        for _, _, row_id, value in sorted(added):
            if taken[value] < self.at_most:
                taken[value] += 1
            else:
                reasons[row_id] = f"surplus: {counts[value]:,} rows of {value!r} > {self.at_most:,}"
        return reasons

    def shortfall(self, rows: Iterable[Row]) -> dict[str, int]:
        """How many rows each value lacks to `at_least`, in order of value; none that has enough. For topping up."""
        if self.at_least is None:
            return {}
        counts = Counter(dict.fromkeys(self.values, 0))
        for row, value in self._valued(rows):
            counts[value] += not row.get(ASIDE)
        return {value: self.at_least - count for value, count in sorted(counts.items()) if count < self.at_least}

    def _valued(self, rows: Iterable[Row]) -> Iterable[tuple[Row, str]]:
        """Accepted training rows that have the value, and what it is."""
        for row in rows:
            value = value_at(row, self.by)
            if row["split"] == "train" and row["reason"] is None and value is not None:
                yield row, str(value)
