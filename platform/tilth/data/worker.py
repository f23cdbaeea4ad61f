"""What computes units and commits them: in each process of a pool, or in this one."""

from __future__ import annotations

import json
import socket
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tilth.data.ledger import HALT, HEAD, Record, Unit, commit
from tilth.data.schema import Row
from tilth.errors import StageError, StorageError, TilthError
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.data.engine import Work


class UnitWorker:
    """One worker: loads the work once, then commits unit after unit."""

    def __init__(self, work: Work, store: Store) -> None:
        self.work, self.store = work, store
        self.run: Callable[[Unit], Iterable[Row]] | None = None
        self.loading = threading.Lock()
        #: it found there what the driver wrote
        self.sees = False
        #: nobody waits for it any more: another may do the same units, so it commits none
        self.left = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """A Ray Data batch of units (one) → manifest records, or the error that ends the stage."""
        return {"record": [self.answer(Unit(**json.loads(unit))) for unit in batch["unit"]]}

    def answer(self, unit: Unit) -> str:
        """Commit one unit → its manifest line, or the error that ends the stage; neither once the work is halted."""
        try:
            if self.store.exists(HALT):
                return json.dumps({"halted": unit.index})
            self._refuse_unshared()
            return self.commit(unit).line()
        except TilthError as error:
            return json.dumps({"error": f"{error}\n{_cause(error)}".rstrip(), "unit": unit.index})

    def _refuse_unshared(self) -> None:
        """StorageError where its node does not see the ledger, as one that joined after all nodes were asked."""
        if not self.sees and not self.store.exists(HEAD):
            raise StorageError(
                f"{self.store.url} is a path that node {socket.gethostname()} does not see; give as --out a "
                "shared file system or a URI such as s3://bucket/run"
            )
        self.sees = True

    def commit(self, unit: Unit) -> Record:
        """Compute and commit one unit; StageError with the cause when it cannot be."""
        run = self.loaded()
        try:
            rows = run(unit)
            if self.left:
                raise StageError(f"unit {unit.index} was left before it was done")
            return commit(self.store, unit, rows, self.work.row_type, self.work.inputs(unit))
        except TilthError:
            raise
        except Exception as error:
            raise StageError(f"{type(error).__name__}: {error}") from error

    def rows(self, unit: Unit) -> list[Row]:
        """Compute a unit without committing it."""
        return list(self.loaded()(unit))

    def loaded(self) -> Callable[[Unit], Iterable[Row]]:
        """The work's function. Loaded at the first unit: Ray would start an actor whose constructor fails for ever."""
        with self.loading:
            if self.run is None:
                try:
                    self.run = self.work.load()
                except TilthError:
                    raise
                except Exception as error:
                    raise StageError(f"cannot load: {type(error).__name__}: {error}") from error
            return self.run

    def ready(self) -> bool:
        """Load, and say so."""
        return self.loaded() is not None


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
