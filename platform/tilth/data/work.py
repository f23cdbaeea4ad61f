"""What the engine runs: work, whose units go through legs, each computed by the workers of one pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from tilth.data.ledger import Unit
from tilth.data.schema import Row

if TYPE_CHECKING:
    from tilth.data.transform import Resources

#: a unit and its rows as the leg before left them, none before the first → all its rows
LegFunction = Callable[[Unit, list[Row]], Iterable[Row]]
RowsLeg = Callable[[Unit, list[Row]], list[Row]]


class Leg(Protocol):
    """A stretch of a unit's way that one pool of workers computes. Picklable; `load` is called once in each worker."""

    @property
    def resources(self) -> Resources | None:
        """Its workers; None: those of the stage."""

    @property
    def in_flight(self) -> int:
        """Rows that one worker should have in flight: more than one where it waits for an engine or server."""

    def load(self) -> LegFunction:
        """A function that gives all rows of a unit: accepted, and dropped with a reason."""


class Work(Protocol):
    """What is done with a unit. Picklable."""

    @property
    def row_type(self) -> str:
        """The row type of what it returns."""

    @property
    def legs(self) -> tuple[Leg, ...]:
        """One or more, in the order in which a unit goes through them."""

    def inputs(self, unit: Unit) -> int | None:
        """How many of a unit's rows were there before; None when the unit reads a source."""

    def poisoned(self, unit: Unit, why: str) -> list[Row]:
        """The rows that stand for a unit of one element that kills its worker, with reason `why`.

        StageError where it is not known how many rows those are.
        """
