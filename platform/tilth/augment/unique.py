"""Unique keys: of the rows that say the same in certain columns, the first one stays."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from tilth.augment.canonical import in_order
from tilth.data.schema import LINEAGE, Row, value_at
from tilth.data.transform import Inputs, RowsFunction, Transform

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


class Unique(Transform):
    """Drops added rows whose key an original or an earlier added row has, in canonical order (`not_unique`).

    A key is the values of `by` together, upper and lower case and white space aside. A row without any of them has
    no key and stays.
    """

    by: tuple[str, ...] = Field(min_length=1, description="Columns, or dotted paths into meta: meta.answer.sku.")

    def columns(self) -> dict[str, str]:
        found = {f"by.{index}": path.partition(".")[0] for index, path in enumerate(self.by)}
        return {where: column for where, column in found.items() if column not in LINEAGE}

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        """Nothing to do within a unit: a row is compared with all others, see `decide`."""
        return lambda rows: rows

    def decide(self, rows: Iterable[Row], inputs: Inputs) -> dict[str, str]:
        """Reasons by id."""
        keyed = ({**row, "key": key} for row in rows if (key := self._key(row)) is not None)
        first: dict[str, str] = {}
        reasons = {}
        for item in in_order(keyed, "key"):
            earlier = first.setdefault(item.text, item.id)
            if earlier != item.id and item.judged:
                reasons[item.id] = f"not_unique: the same {', '.join(self.by)} as {earlier}"
        return reasons

    def _key(self, row: Row) -> str | None:
        values = [value_at(row, name) for name in self.by]
        if all(value is None for value in values):
            return None
        return json.dumps([" ".join(str(value).split()).casefold() for value in values])
