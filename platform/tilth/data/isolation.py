"""Units that kill their workers: each runs alone, then in halves, until the rows that do it are known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tilth import cluster, ui
from tilth.data.ledger import Record, Unit, commit
from tilth.data.schema import Row
from tilth.data.transform import Resources
from tilth.data.work import Work
from tilth.data.worker import UnitWorker, record_of
from tilth.errors import ClusterError, StageError
from tilth.storage import Store

NO_ROOM = (
    "the rows of a unit find no room between two pools of workers: Ray's object store on their node is full, and so is "
    "the disk that it spills to; free that disk or name another (`ray start --object-spilling-directory`, "
    "RAY_object_spilling_directory for a local Ray), give the store more memory (`--object-store-memory`), make units "
    "smaller (unit_rows), or let steps share the stage's workers (no resources of their own)"
)


def refuse_hopeless(lone: Lone) -> None:
    """StageError when a worker dies before it sees a row: that is no row's fault."""
    if (pool := lone.dies_loading()) is not None:
        raise StageError(
            "every worker process dies while it loads its models, most likely for want of memory; "
            f"use fewer workers (resources.workers, now {pool.workers}) or a smaller model"
        )


def alone(lone: Lone, unit: Unit) -> Iterator[Record]:
    """The record of a unit that is run alone, where it does not kill a worker; ClusterError where it finds no room."""
    if (record := lone.commit(unit)) is not None:
        yield record


def isolate(lone: Lone, unit: Unit) -> Record:
    """Run a unit that keeps killing its worker, alone and in halves; the driver commits what survives."""
    ui.reporter().say(f"unit {unit.index} killed its worker each time: looking for the row that does")
    if (record := lone.commit(unit)) is not None:  # it had not enough memory beside the others
        return record
    rows = list(_parted(lone, unit))
    return commit(lone.store, unit, rows, lone.work.row_type, lone.work.inputs(unit))


@dataclass
class Lone:
    """A single worker of each pool, each in its own process, replaced when it dies."""

    work: Work
    store: Store
    pools: Sequence[Resources]
    actors: dict[int, Any] = field(default_factory=dict)

    def commit(self, unit: Unit) -> Record | None:
        """Compute and commit a unit, None when it killed a process."""
        rows, line = b"", ""
        for leg in range(len(self.pools)):
            if (found := self._ask(leg, "answer", json.dumps(asdict(unit)), rows)) is None:
                return None
            rows, line = found
            if line:
                break
        return record_of(line)

    def rows(self, unit: Unit) -> list[Row] | None:
        """The rows of a part of a unit, None when it killed a process."""
        rows: list[Row] | None = []
        for leg in range(len(self.pools)):
            if (rows := self._ask(leg, "rows", unit, rows)) is None:
                return None
        return rows

    def dies_loading(self) -> Resources | None:
        """The first pool whose worker dies before it sees a row."""
        return next((pool for leg, pool in enumerate(self.pools) if not self._ask(leg, "ready")), None)

    def _ask(self, leg: int, method: str, *args: Any) -> Any:
        import ray
        from ray.exceptions import ObjectStoreFullError, OutOfDiskError, OutOfMemoryError, RayActorError

        if leg not in self.actors:
            actor = ray.remote(UnitWorker).options(**self.pools[leg].options, max_restarts=0)
            self.actors[leg] = actor.remote(self.work, self.store, leg)
        try:
            return ray.get(getattr(self.actors[leg], method).remote(*args))
        except (RayActorError, OutOfMemoryError) as error:  # the latter where Ray itself ended it, for want of memory
            del self.actors[leg]
            if why := cluster.never_begun(error):
                raise StageError(
                    f"a worker process cannot start on this cluster: {why}; its nodes must be able to import what the "
                    "recipe names: install it there, or submit the run as a job, which takes it along"
                ) from error
            return None
        except (ObjectStoreFullError, OutOfDiskError) as error:
            raise ClusterError(NO_ROOM) from error


def _survivors(worker: Lone, unit: Unit) -> Iterator[Row]:
    if (found := worker.rows(unit)) is not None:
        yield from found
    else:
        yield from _parted(worker, unit)


def _parted(worker: Lone, unit: Unit) -> Iterator[Row]:
    """What survives of a unit that killed its worker."""
    if len(unit) == 1:
        yield from worker.work.poisoned(unit, "quarantined/killed_worker: its worker process died each time")
        return
    middle = (unit.start + unit.stop) // 2
    for start, stop in ((unit.start, middle), (middle, unit.stop)):
        yield from _survivors(worker, Unit(unit.index, unit.source, start, stop))
