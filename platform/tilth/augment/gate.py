"""Stage `gate`: filters on rows that are there already, such as those that people wrote."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import TYPE_CHECKING, ClassVar

from tilth.augment.base import Augmenter
from tilth.augment.stage import Augment
from tilth.data.schema import NEW, Row
from tilth.data.transform import Inputs, RowsFunction, Transform
from tilth.errors import Problem

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


class Gate(Augment):
    """Judges the rows that it is given by the filters that judge made rows in `augment` and `generate`; adds none.

    Each row is judged by itself, as one that was made from no other: what a filter compares with a parent stays.
    Filters that look at all rows together see those of other splits as originals, and drop none of them.
    """

    def check(self) -> list[Problem]:
        return [
            Problem(f"steps.{index}", f"{step.kind} makes rows, a gate judges those that are there", "use augment")
            for index, step in enumerate(self.steps)
            if isinstance(step, Augmenter)
        ]

    @property
    def working(self) -> tuple[Transform, ...]:
        return tuple(_Alone(step=step, resources=step.resources) for step in self.steps)

    def seen(self, row: Row, given: Set[str]) -> Row:
        return {**row, NEW: True, "via": row["via"] or self.kind}


class _Alone(Transform):
    """A filter for which every row is new and has no parent."""

    sees_parents: ClassVar[bool] = False

    step: Transform

    @property
    def in_flight(self) -> int:
        return self.step.in_flight

    def fit(self, rows: Iterable[Row], inputs: Inputs) -> Fitted:
        return self.step.fit(rows, inputs)

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        judge = self.step.load(inputs, fitted)

        def alone(rows: list[Row]) -> list[Row]:
            judged = judge([{**row, NEW: True, "parent": None} for row in rows])
            parents = {row["id"]: row["parent"] for row in rows}
            return [
                {**{name: value for name, value in row.items() if name != NEW}, "parent": parents[row["id"]]}
                for row in judged
            ]

        return alone
