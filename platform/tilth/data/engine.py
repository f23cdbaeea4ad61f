"""Running units of work on Ray Data, every one committed once, whatever dies.

Ray Data schedules: one block is one unit, so all actors of the pool are busy on small inputs too. It is not
trusted with rows: a worker commits its unit itself and returns one manifest record. A unit whose worker
died is seen by its absence and run again, twice; then it is isolated: run alone, halved until the rows that
kill their worker stand alone, which are quarantined while their neighbours survive.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from tilth import cluster, ui
from tilth.data.ledger import Ledger, Record, Unit, commit
from tilth.data.schema import Row
from tilth.data.transform import Resources
from tilth.errors import StageError, TilthError
from tilth.storage import Store

PASSES = 3


class Work(Protocol):
    """What is done with a unit. Picklable; `load` is called once in each worker."""

    row_type: str

    def load(self) -> Callable[[Unit], Iterable[Row]]:
        """A function from a unit to all its rows: accepted, and dropped with a reason."""

    def inputs(self, unit: Unit) -> int | None:
        """How many of a unit's rows were there before; None when the unit reads a source."""

    def poisoned(self, unit: Unit, why: str) -> list[Row]:
        """The rows that stand for a unit of one element that kills its worker, with reason `why`."""


def run_units(work: Work, ledger: Ledger, resources: Resources, title: str) -> None:
    """Commit every missing unit of the ledger, on Ray Data. StageError when a unit fails for good."""
    missing = ledger.missing()
    if not missing:
        return
    cluster.ray_ready()
    done = sum(len(unit) for unit in ledger.units.values()) - sum(map(len, missing))
    with ui.reporter().progress(title, sum(len(unit) for unit in ledger.units.values())) as advance:
        advance(done)
        for _ in range(PASSES):
            for record in _pass(work, ledger.store, missing, resources):
                ledger.add(record)
                advance(len(ledger.units[record.unit]))
            ledger.flush()
            if not (missing := ledger.missing()):
                return
        for unit in missing:
            ledger.add(_isolate(work, ledger.store, unit, resources))
            advance(len(unit))
        ledger.flush()


def run_inline(work: Work, ledger: Ledger) -> None:
    """The same in this process, without Ray: for small inputs and machines that have no Ray."""
    if missing := ledger.missing():
        worker = UnitWorker(work, ledger.store)
        for unit in missing:
            ledger.add(worker.commit(unit))
        ledger.flush()


class UnitWorker:
    """One worker: loads the work once, then commits unit after unit."""

    def __init__(self, work: Work, store: Store) -> None:
        self.work, self.store = work, store
        self.run = work.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """A Ray Data batch of units (one) → manifest records, or the error that ends the stage."""
        return {"record": [self._answer(Unit(**json.loads(unit))) for unit in batch["unit"]]}

    def _answer(self, unit: Unit) -> str:
        try:
            return self.commit(unit).line()
        except TilthError as error:
            return json.dumps({"error": f"{type(error).__name__}: {error}", "unit": unit.index})

    def commit(self, unit: Unit) -> Record:
        """Compute and commit one unit."""
        return commit(self.store, unit, self.run(unit), self.work.row_type, self.work.inputs(unit))

    def rows(self, unit: Unit) -> list[Row]:
        """Compute a unit without committing it."""
        return list(self.run(unit))


def _pass(work: Work, store: Store, units: Sequence[Unit], resources: Resources) -> Iterator[Record]:
    """One run over `units` on Ray Data; units whose worker died are missing from the answers."""
    import ray

    count = min(resources.count(ray.cluster_resources()), len(units))
    blocks = ray.data.from_items([{"unit": json.dumps(asdict(unit))} for unit in units], override_num_blocks=len(units))
    answers = blocks.map_batches(
        UnitWorker,
        fn_constructor_args=(work, store),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
    )
    for batch in answers.iter_batches(batch_size=1, batch_format="pandas"):
        yield from map(_record, batch["record"])


def _record(line: str) -> Record:
    answer = json.loads(line)
    if "error" in answer:
        raise StageError(f"unit {answer['unit']}: {answer['error']}")
    return Record.parse(line)


def _isolate(work: Work, store: Store, unit: Unit, resources: Resources) -> Record:
    """Run a unit that keeps killing its worker, alone and in halves; the driver commits what survives."""
    ui.reporter().say(f"unit {unit.index} killed its worker {PASSES} times: looking for the row that does")
    rows = list(_survivors(_Lone(work, store, resources), unit))
    return commit(store, unit, rows, work.row_type, work.inputs(unit))


@dataclass
class _Lone:
    """A single worker in its own process, replaced when it dies."""

    work: Work
    store: Store
    resources: Resources
    actor: Any = field(default=None)

    def rows(self, unit: Unit) -> list[Row] | None:
        """The rows of a unit, None when it killed the process."""
        import ray
        from ray.exceptions import RayActorError

        if self.actor is None:
            options = {"num_cpus": self.resources.cpus, "num_gpus": self.resources.gpus, "max_restarts": 0}
            self.actor = ray.remote(UnitWorker).options(**options).remote(self.work, self.store)
        try:
            found: list[Row] = ray.get(self.actor.rows.remote(unit))
        except RayActorError:
            self.actor = None
            return None
        return found


def _survivors(worker: _Lone, unit: Unit) -> Iterator[Row]:
    found = worker.rows(unit)
    if found is not None:
        yield from found
    elif len(unit) == 1:
        yield from worker.work.poisoned(unit, "quarantined/killed_worker: its worker process died each time")
    else:
        middle = (unit.start + unit.stop) // 2
        for start, stop in ((unit.start, middle), (middle, unit.stop)):
            yield from _survivors(worker, Unit(unit.index, unit.source, start, stop))
