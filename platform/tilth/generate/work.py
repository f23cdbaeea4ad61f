"""The work of a generating stage: asks in, made and gated rows out, in units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tilth.data.chain import UnitReader, chained, guarded
from tilth.data.ledger import Unit
from tilth.data.schema import NEW, Row
from tilth.data.transform import Inputs, Transform
from tilth.errors import StageError
from tilth.generate.base import Generator
from tilth.generate.method import Made, Method, rows_of
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


@dataclass(frozen=True)
class Generating:
    """Asks are rows of `asks`: a dataset, or the asks of a round. See `tilth.data.engine.Work`."""

    asks: Store
    method: Method
    generator: Generator | None
    steps: tuple[Transform, ...] = ()
    context: Inputs = field(default_factory=Inputs)
    fitted: tuple[Fitted, ...] = ()

    @property
    def row_type(self) -> str:
        return self.method.makes

    @property
    def in_flight(self) -> int:
        own = self.generator.in_flight if self.generator else 1
        return max([own, *(step.in_flight for step in self.steps)])

    def load(self) -> Callable[[Unit], list[Row]]:
        make = self.method.load(self.generator, self.context)
        gates = chained(self.steps, self.context, self.fitted)
        reader = UnitReader(self.asks)
        model = self.generator.title if self.generator else self.method.kind

        def made(asks: list[Row]) -> list[Row]:
            yields = make(asks)
            if len(yields) != len(asks):
                raise StageError(f"{self.method.kind} gave {len(yields)} yields for {len(asks)} asks")
            return rows_of(self.method, model, asks, yields)

        def run(unit: Unit) -> list[Row]:
            asks = reader.rows(unit)
            rows = guarded(made, asks, self._failed)
            return guarded(lambda part: gated(gates, asks, part), rows)

        return run

    def _failed(self, ask: Row, why: str) -> Row:
        """The row that stands for an ask on which the method raised."""
        return self.method.row(ask, 0, Made({}, why), None)

    def inputs(self, unit: Unit) -> None:
        return None

    def poisoned(self, unit: Unit, why: str) -> list[Row]:
        return [self._failed(ask, why) for ask in UnitReader(self.asks).rows(unit)]


def gated(gates: Callable[[list[Row]], list[Row]], asks: list[Row], rows: list[Row]) -> list[Row]:
    """The rows after the gates, which see the parents beside them."""
    named = {row["parent"] for row in rows}
    parents = {parent["id"]: parent for ask in asks if (parent := _parent(ask))["id"] in named}
    context = [{**parent, "reason": None} for parent in parents.values()]
    return [row for row in gates([*context, *rows]) if row.get(NEW)]


def _parent(ask: Row) -> Row:
    """What a gate compares with: the row that was asked about, or the one that a round's ask descends from."""
    return {**ask, "id": ask["parent"]} if ask["parent"] and ask["via"] is None else ask
