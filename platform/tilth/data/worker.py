"""What computes units and commits them: in each process of a pool, or in this one.

A unit goes through the legs of its work. Where these have pools of their own, its rows go from one to the next as
bytes in Ray's object store, and the last one commits it.
"""

from __future__ import annotations

import json
import pickle
import socket
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tilth.data.ledger import HALT, HEAD, Record, Unit, commit
from tilth.data.schema import Row
from tilth.errors import StageError, StorageError, TilthError
from tilth.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from tilth.data.work import LegFunction, Work


class UnitWorker:
    """One worker: loads its leg of the work once, or all of them, then computes unit after unit."""

    def __init__(self, work: Work, store: Store, leg: int | None = None) -> None:
        self.work, self.store = work, store
        self.legs = work.legs if leg is None else work.legs[leg : leg + 1]
        self.first, self.last = leg in (None, 0), leg in (None, len(work.legs) - 1)
        self.run: LegFunction | None = None
        self.loading = threading.Lock()
        #: it found there what the driver wrote
        self.sees = False
        #: nobody waits for it any more: another may do the same units, so it commits none
        self.left = False

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A Ray Data batch of units with their rows → the same, and an answer where there is one."""
        import pyarrow as pa

        found = []
        for given in batch.to_pylist():
            rows, record = (b"", given["record"]) if given["record"] else self.answer(given["unit"], given["rows"])
            found.append({"unit": given["unit"], "rows": rows, "record": record})
        return pa.Table.from_pylist(found)

    def answer(self, unit: str, rows: bytes = b"") -> tuple[bytes, str]:
        """Compute one unit → its rows for the next leg, and an answer where no leg comes after: the manifest line of
        the unit, committed, or the error that ends the stage, or that the work was halted before it began."""
        given = Unit(**json.loads(unit))
        try:
            if self.first and self.store.exists(HALT):
                return b"", json.dumps({"halted": given.index})
            self._refuse_unshared()
            before = pickle.loads(rows) if rows else []
            if self.last:
                return b"", self.commit(given, before).line()
            with _blaming():
                return pickle.dumps(self.rows(given, before)), ""
        except TilthError as error:
            return b"", json.dumps({"error": f"{error}\n{_cause(error)}".rstrip(), "unit": given.index})

    def _refuse_unshared(self) -> None:
        """StorageError where its node does not see the ledger, as one that joined after all nodes were asked."""
        if not self.sees and not self.store.exists(HEAD):
            raise StorageError(
                f"{self.store.url} is a path that node {socket.gethostname()} does not see; give as --out a "
                "shared file system or a URI such as s3://bucket/run"
            )
        self.sees = True

    def commit(self, unit: Unit, rows: Sequence[Row] = ()) -> Record:
        """Compute and commit one unit; StageError with the cause when it cannot be."""
        with _blaming():
            made = self.loaded()(unit, list(rows))
            if self.left:
                raise StageError(f"unit {unit.index} was left before it was done")
            return commit(self.store, unit, made, self.work.row_type, self.work.inputs(unit))

    def rows(self, unit: Unit, rows: Sequence[Row] = ()) -> list[Row]:
        """Compute a unit without committing it."""
        with _blaming():
            return list(self.loaded()(unit, list(rows)))

    def loaded(self) -> LegFunction:
        """The work's function. Loaded at the first unit: Ray would start an actor whose constructor fails for ever."""
        with self.loading:
            if self.run is None:
                try:
                    self.run = _in_turn([leg.load() for leg in self.legs])
                except TilthError:
                    raise
                except Exception as error:
                    raise StageError(f"cannot load: {type(error).__name__}: {error}") from error
            return self.run

    def ready(self) -> bool:
        """Load, and say so."""
        return self.loaded() is not None


def _in_turn(functions: Sequence[LegFunction]) -> LegFunction:
    *others, last = functions

    def run(unit: Unit, rows: list[Row]) -> Iterable[Row]:
        for function in others:
            rows = list(function(unit, rows))
        return last(unit, rows)

    return run


@contextmanager
def _blaming() -> Iterator[None]:
    """Errors that are not ours as StageError."""
    try:
        yield
    except TilthError:
        raise
    except Exception as error:
        raise StageError(f"{type(error).__name__}: {error}") from error


def _cause(error: BaseException) -> str:
    """Where an error that is not ours was raised, for the person who has to mend it."""
    return "" if error.__cause__ is None else "".join(traceback.format_exception(error.__cause__)[-4:])


def halted(line: str) -> bool:
    """Whether an answer says that the unit was not begun."""
    return "halted" in json.loads(line)


def record_of(line: str) -> Record:
    """The record in an answer; StageError where it is an error."""
    answer = json.loads(line)
    if "error" in answer:
        raise StageError(f"unit {answer['unit']}: {answer['error']}")
    return Record.parse(line)
