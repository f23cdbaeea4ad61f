"""Running units of work on Ray Data, every one committed once, whatever dies.

Ray Data schedules: one block is one unit, so all actors of the pool are busy on small inputs too. It is not
trusted with rows: a worker commits its unit itself and returns one manifest record. A unit whose worker
died is seen by its absence and run again, twice; then it is isolated: run alone, halved until the rows that
kill their worker stand alone, which are quarantined while their neighbours survive. A piece of a source cannot be
halved, nor is it known how many rows it holds: it ends the stage.
"""

from __future__ import annotations

import json
import logging
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from tilth import cluster, room, ui
from tilth.data.ledger import Ledger, Record, Unit, commit
from tilth.data.schema import Row
from tilth.data.transform import Resources
from tilth.errors import StageError, TilthError
from tilth.storage import Store

PASSES = 3
#: with so many units for each worker, the next one waits at a worker while it computes: it never idles for the
#: quarter of a second that an answer takes through Ray Data. With fewer, one worker would hold what another could do.
MANY_UNITS = 16


class Work(Protocol):
    """What is done with a unit. Picklable; `load` is called once in each worker."""

    @property
    def row_type(self) -> str:
        """The row type of what it returns."""

    @property
    def in_flight(self) -> int:
        """Units that one worker computes at once, in threads: more than one where it waits for an engine or server."""

    def load(self) -> Callable[[Unit], Iterable[Row]]:
        """A function from a unit to all its rows: accepted, and dropped with a reason."""

    def inputs(self, unit: Unit) -> int | None:
        """How many of a unit's rows were there before; None when the unit reads a source."""

    def poisoned(self, unit: Unit, why: str) -> list[Row]:
        """The rows that stand for a unit of one element that kills its worker, with reason `why`.

        StageError where it is not known how many rows those are.
        """


def _never(ledger: Ledger) -> str | None:
    return None


def run_units(
    work: Work, ledger: Ledger, resources: Resources, title: str, stop: Callable[[Ledger], str | None] = _never
) -> str | None:
    """Commit every missing unit of the ledger. StageError when a unit fails for good.

    On Ray Data, or with `resources.workers` 0 in this process, where Ray is not even imported. `stop` is asked after
    each unit: when it gives a reason, no further unit is begun, those in flight are taken in, and the reason is
    returned, with the figures of all.
    """
    missing = ledger.missing()
    if not missing:
        return None
    total = sum(map(len, ledger.units.values()))
    with ui.reporter().progress(title, total) as advance:
        advance(total - sum(map(len, missing)))
        why = stop(ledger)
        with closing(_inline(work, ledger) if resources.workers == 0 else _on_ray(work, ledger, resources)) as records:
            while why is None and (record := next(records, None)) is not None:
                ledger.add(record)
                advance(len(ledger.units[record.unit]))
                why = stop(ledger)
        if why is not None:
            advance(sum(len(ledger.units[index]) for index in ledger.adopt()))
            why = stop(ledger) or why
        ledger.flush()
    return why


def _inline(work: Work, ledger: Ledger) -> Generator[Record]:
    worker = UnitWorker(work, ledger.store)
    if work.in_flight == 1:
        yield from map(worker.commit, ledger.missing())
        return
    with ThreadPoolExecutor(work.in_flight) as pool:
        try:
            for done in as_completed([pool.submit(worker.commit, unit) for unit in ledger.missing()]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _on_ray(work: Work, ledger: Ledger, resources: Resources) -> Generator[Record]:
    """Records as units commit; a unit that is not among them after three passes is isolated."""
    cluster.ray_ready()
    room.refuse_unplaceable(resources.each, 1, resources.nodes.selector)  # the pool works with fewer than asked
    for _ in range(PASSES):
        if missing := ledger.missing():
            yield from _pass(work, ledger.store, missing, resources)
    if missing := ledger.missing():
        _refuse_hopeless(work, ledger, resources)
        for unit in missing:
            yield _isolate(work, ledger.store, unit, resources)


class UnitWorker:
    """One worker: loads the work once, then commits unit after unit."""

    def __init__(self, work: Work, store: Store) -> None:
        self.work, self.store = work, store
        self.run: Callable[[Unit], Iterable[Row]] | None = None
        self.loading = threading.Lock()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """A Ray Data batch of units (one) → manifest records, or the error that ends the stage."""
        return {"record": [self.answer(Unit(**json.loads(unit))) for unit in batch["unit"]]}

    def answer(self, unit: Unit) -> str:
        """Commit one unit → its manifest line, or the error that ends the stage."""
        try:
            return self.commit(unit).line()
        except TilthError as error:
            return json.dumps({"error": f"{error}\n{_cause(error)}".rstrip(), "unit": unit.index})

    def commit(self, unit: Unit) -> Record:
        """Compute and commit one unit; StageError with the cause when it cannot be."""
        run = self.loaded()
        try:
            return commit(self.store, unit, run(unit), self.work.row_type, self.work.inputs(unit))
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


def _pass(work: Work, store: Store, units: Sequence[Unit], resources: Resources) -> Iterator[Record]:
    """One run over `units` on Ray Data; units whose worker died are missing from the answers."""
    import ray

    count = min(resources.count(room.held(resources.nodes.selector)), len(units))
    _configure(ray.data.DataContext.get_current())
    blocks = ray.data.from_items([{"unit": json.dumps(asdict(unit))} for unit in units], override_num_blocks=len(units))
    with warnings.catch_warnings():
        # Ray 2.60 has no other name yet for the last two settings
        warnings.filterwarnings("ignore", message="`ray_remote_args`")
        answers = blocks.map_batches(
            UnitWorker,
            fn_constructor_args=(work, store),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=count,
                # what waits on an actor that dies is missing with what it computed, and run in the next pass
                max_tasks_in_flight_per_actor=work.in_flight + (len(units) >= MANY_UNITS * count * work.in_flight),
                max_concurrent_calls_per_actor=work.in_flight,
                enable_true_multi_threading=work.in_flight > 1,
            ),
            **resources.options,
            max_restarts=-1,
            max_task_retries=0,
        )
    for batch in answers.iter_batches(batch_size=1, prefetch_batches=0, batch_format="numpy"):
        yield from map(_record, batch["record"])


def _configure(context: Any) -> None:
    """A block is lost only with its worker: errors come back as answers, and the ledger sees what is missing."""
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _record(line: str) -> Record:
    answer = json.loads(line)
    if "error" in answer:
        raise StageError(f"unit {answer['unit']}: {answer['error']}")
    return Record.parse(line)


def _refuse_hopeless(work: Work, ledger: Ledger, resources: Resources) -> None:
    """StageError when a worker dies before it sees a row: that is no row's fault."""
    if not _Lone(work, ledger.store, resources).survives_loading():
        raise StageError(
            "every worker process dies while it loads its models, most likely for want of memory; "
            f"use fewer workers (resources.workers, now {resources.workers}) or a smaller model"
        )


def _isolate(work: Work, store: Store, unit: Unit, resources: Resources) -> Record:
    """Run a unit that keeps killing its worker, alone and in halves; the driver commits what survives."""
    ui.reporter().say(f"unit {unit.index} killed its worker {PASSES} times: looking for the row that does")
    lone = _Lone(work, store, resources)
    if (record := lone.commit(unit)) is not None:  # it had not enough memory beside the others
        return record
    rows = list(_parted(lone, unit))
    return commit(store, unit, rows, work.row_type, work.inputs(unit))


@dataclass
class _Lone:
    """A single worker in its own process, replaced when it dies."""

    work: Work
    store: Store
    resources: Resources
    actor: Any = field(default=None)

    def commit(self, unit: Unit) -> Record | None:
        """Compute and commit a unit, None when it killed the process."""
        line = self._ask("answer", unit)
        return None if line is None else _record(line)

    def rows(self, unit: Unit) -> list[Row] | None:
        """The rows of a part of a unit, None when it killed the process."""
        found: list[Row] | None = self._ask("rows", unit)
        return found

    def survives_loading(self) -> bool:
        return bool(self._ask("ready"))

    def _ask(self, method: str, *args: Any) -> Any:
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError

        if self.actor is None:
            self.actor = (
                ray.remote(UnitWorker).options(**self.resources.options, max_restarts=0).remote(self.work, self.store)
            )
        try:
            return ray.get(getattr(self.actor, method).remote(*args))
        except (RayActorError, OutOfMemoryError):  # the latter where Ray itself ended it, for want of memory
            self.actor = None
            return None


def _survivors(worker: _Lone, unit: Unit) -> Iterator[Row]:
    if (found := worker.rows(unit)) is not None:
        yield from found
    else:
        yield from _parted(worker, unit)


def _parted(worker: _Lone, unit: Unit) -> Iterator[Row]:
    """What survives of a unit that killed its worker."""
    if len(unit) == 1:
        yield from worker.work.poisoned(unit, "quarantined/killed_worker: its worker process died each time")
        return
    middle = (unit.start + unit.stop) // 2
    for start, stop in ((unit.start, middle), (middle, unit.stop)):
        yield from _survivors(worker, Unit(unit.index, unit.source, start, stop))
