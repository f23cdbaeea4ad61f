"""The work of a generating stage: asks in, made and gated rows out, in units."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from tilth.data.chain import Around, UnitReader, stretches
from tilth.data.guard import guarded
from tilth.data.ledger import Unit
from tilth.data.schema import NEW, Row
from tilth.data.transform import Inputs, Resources, Transform
from tilth.errors import StageError
from tilth.generate.base import Generator
from tilth.generate.method import Made, Method, rows_of
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.data.transform import Fitted
    from tilth.data.work import Leg, LegFunction, RowsLeg


@dataclass(frozen=True)
class Generating:
    """Asks are rows of `asks`: a dataset, or the asks of a round. See `tilth.data.work.Work`."""

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
    def legs(self) -> tuple[Leg, ...]:
        parts = stretches(self.steps, self.context, self.fitted)
        gates = [_Gates(part, self.asks, at == 0, at == len(parts) - 1) for at, part in enumerate(parts)]
        return (_Make(self), *gates) if gates[0].resources else (_Make(self, gates[0]), *gates[1:])

    def failed(self, ask: Row, why: str) -> Row:
        """The row that stands for an ask on which the method raised."""
        return self.method.row(ask, 0, Made({}, why), None)

    def inputs(self, unit: Unit) -> None:
        return None

    def poisoned(self, unit: Unit, why: str) -> list[Row]:
        return [self.failed(ask, why) for ask in UnitReader(self.asks).rows(unit)]


@dataclass(frozen=True)
class _Make:
    """Asks the generator, and applies the gates that its workers apply too."""

    work: Generating
    gates: _Gates | None = None
    resources: ClassVar[Resources | None] = None

    @property
    def in_flight(self) -> int:
        own = self.work.generator.in_flight if self.work.generator else 1
        return max(own, self.gates.in_flight if self.gates else 1)

    def load(self) -> LegFunction:
        work = self.work
        make = work.method.load(work.generator, work.context)
        gates = self.gates.load() if self.gates else lambda unit, rows: rows
        reader = UnitReader(work.asks)
        model = work.generator.title if work.generator else work.method.kind

        def made(asks: list[Row]) -> list[Row]:
            yields = make(asks)
            if len(yields) != len(asks):
                raise StageError(f"{work.method.kind} gave {len(yields)} yields for {len(asks)} asks")
            return rows_of(work.method, model, asks, yields)

        return lambda unit, rows: gates(unit, guarded(made, reader.rows(unit), work.failed))


@dataclass(frozen=True)
class _Gates(Around):
    """Judges what was made beside what it was made from, which the first gates take in and the last leave out."""

    asks: Store
    first: bool
    last: bool

    def load(self) -> RowsLeg:
        apply, reader = self.stretch.load(), UnitReader(self.asks)

        def judge(unit: Unit, rows: list[Row]) -> list[Row]:
            judged = apply(unit, [*origins(reader.rows(unit), rows), *rows] if self.first else rows)
            return [row for row in judged if row.get(NEW)] if self.last else judged

        return judge


def origins(asks: list[Row], rows: list[Row]) -> list[Row]:
    """What the rows were made from, for gates that compare them."""
    named = {row["parent"] for row in rows}
    parents = {parent["id"]: parent for ask in asks if (parent := _parent(ask))["id"] in named}
    return [{**parent, "reason": None} for parent in parents.values()]


def _parent(ask: Row) -> Row:
    """What a gate compares with: the row that was asked about, or the one that a round's ask descends from."""
    return {**ask, "id": ask["parent"]} if ask["parent"] and ask["via"] is None else ask
