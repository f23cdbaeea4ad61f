"""Running units of work on Ray Data, every one committed once, whatever dies.

Ray Data schedules: one block is one unit, so all actors of the pool are busy on small inputs too. It is not
trusted with rows: a worker commits its unit itself and returns one manifest record. A unit whose worker
died is seen by its absence and run again, twice; then it is isolated: run alone, halved until the rows that
kill their worker stand alone, which are quarantined while their neighbours survive. A piece of a source cannot be
halved, nor is it known how many rows it holds: it ends the stage.

Where workers die in the first pass more often than rows account for, it is ended, and one worker alone is asked whether
it can load. Ray kills the workers of a pass that is ended; one that shall only begin no more is told so by the ledger
(`Ledger.halt`) and taken in to its end, with what was in flight.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from tilth import cluster, room, ui
from tilth.data.ledger import Ledger, Record, Unit, commit
from tilth.data.schema import Row
from tilth.data.threads import in_threads
from tilth.data.transform import Resources
from tilth.data.worker import UnitWorker, halted, record_of
from tilth.errors import StageError
from tilth.storage import Store

PASSES = 3
#: with so many units for each worker, the next one waits at a worker while it computes: it never idles for the
#: quarter of a second that an answer takes through Ray Data. With fewer, one worker would hold what another could do.
MANY_UNITS = 16
#: units that a worker computes at once, at most: each is a thread
MOST_AT_ONCE = 64
#: by so much fewer at once after the first pass
FEWER = 8
#: each worker of a pool may die so often, with all that it holds, before the first pass is ended to ask why
DEATHS = 4


class Work(Protocol):
    """What is done with a unit. Picklable; `load` is called once in each worker."""

    @property
    def row_type(self) -> str:
        """The row type of what it returns."""

    @property
    def in_flight(self) -> int:
        """Rows that one worker should have in flight: more than one where it waits for an engine or server."""

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
        if (why := stop(ledger)) is not None:
            ledger.halt()
        with closing(_inline(work, ledger) if resources.workers == 0 else _on_ray(work, ledger, resources)) as records:
            for record in records:
                ledger.add(record)
                advance(len(ledger.units[record.unit]))
                if why is None and (why := stop(ledger)) is not None:
                    ledger.halt()
        if why is not None:
            advance(sum(len(ledger.units[index]) for index in ledger.adopt()))
            why = stop(ledger) or why
        ledger.flush()
    return why


def units_at_once(work: Work, units: Sequence[Unit], workers: int = 1) -> int:
    """Units that each worker computes at once, in threads: as many as hold the rows that it should have in flight.

    Two at least where more than one row should be, so that the next is under way when one ends; its share at most.
    """
    if work.in_flight == 1:
        return 1
    wanted = max(2, math.ceil(work.in_flight / max(map(len, units))))
    return min(wanted, math.ceil(len(units) / workers), MOST_AT_ONCE)


def _inline(work: Work, ledger: Ledger) -> Generator[Record]:
    worker = UnitWorker(work, ledger.store)
    missing = ledger.missing()
    if (at_once := units_at_once(work, missing)) > 1:
        try:
            yield from in_threads(worker.commit, missing, at_once, lambda: ledger.halted)
        finally:
            worker.left = True
        return
    for unit in missing:
        if ledger.halted:
            return
        yield worker.commit(unit)


def _on_ray(work: Work, ledger: Ledger, resources: Resources) -> Generator[Record]:
    """Records as units commit; a unit that is not among them after three passes is isolated."""
    if ledger.halted:
        return
    cluster.ray_ready()
    room.refuse_unplaceable(resources.each, 1, resources.nodes.selector)  # the pool works with fewer than asked
    missing = ledger.missing()
    yield from _pass(work, ledger.store, missing, resources, first=True)
    if ledger.missing() == missing and not ledger.halted:
        _refuse_hopeless(_Lone(work, ledger.store, resources))
    for _ in range(PASSES - 1):
        if (missing := ledger.missing()) and not ledger.halted:
            yield from _pass(work, ledger.store, missing, resources)
    if (missing := ledger.missing()) and not ledger.halted:
        lone = _Lone(work, ledger.store, resources)
        _refuse_hopeless(lone)
        for unit in missing:
            if not ledger.halted:
                yield _isolate(lone, unit)


def _pass(
    work: Work, store: Store, units: Sequence[Unit], resources: Resources, first: bool = False
) -> Iterator[Record]:
    """One run over `units` on Ray Data; units whose worker died are missing from the answers.

    The first one ends early where more are lost than rows that kill their worker account for.
    """
    import ray

    count = min(resources.count(room.held(resources.nodes.selector)), len(units))
    at_once = units_at_once(work, units, count)
    if not first:  # what is left died with its worker: in less company, so that fewer do should one die again
        at_once = max(1, at_once // FEWER)
    _configure(ray.data.DataContext.get_current(), DEATHS * count * (at_once + 1) if first else -1)
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
                max_tasks_in_flight_per_actor=at_once + (len(units) >= MANY_UNITS * count * at_once),
                max_concurrent_calls_per_actor=at_once,
                enable_true_multi_threading=at_once > 1,
            ),
            **resources.options,
            max_restarts=-1,
            max_task_retries=0,
        )
    try:
        for batch in answers.iter_batches(batch_size=1, prefetch_batches=0, batch_format="numpy"):
            yield from map(record_of, (line for line in batch["record"] if not halted(line)))
    except ray.exceptions.RayError:  # where more is lost than may be, the error of the last
        if not first:
            raise


def _configure(context: Any, lost: int) -> None:
    """A block is lost only with its worker: errors come back as answers, and the ledger sees what is missing."""
    context.max_errored_blocks = lost
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _refuse_hopeless(lone: _Lone) -> None:
    """StageError when a worker dies before it sees a row: that is no row's fault."""
    if not lone.survives_loading():
        raise StageError(
            "every worker process dies while it loads its models, most likely for want of memory; "
            f"use fewer workers (resources.workers, now {lone.resources.workers}) or a smaller model"
        )


def _isolate(lone: _Lone, unit: Unit) -> Record:
    """Run a unit that keeps killing its worker, alone and in halves; the driver commits what survives."""
    ui.reporter().say(f"unit {unit.index} killed its worker {PASSES} times: looking for the row that does")
    if (record := lone.commit(unit)) is not None:  # it had not enough memory beside the others
        return record
    rows = list(_parted(lone, unit))
    return commit(lone.store, unit, rows, lone.work.row_type, lone.work.inputs(unit))


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
        return None if line is None else record_of(line)

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
