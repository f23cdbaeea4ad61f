"""Running units of work on Ray Data, every one committed once, whatever dies.

Ray Data schedules: one block is one unit, so all actors of the pool are busy on small inputs too. Where steps have
workers of their own, a unit streams from pool to pool, so that GPUs answer while CPUs judge. Ray Data is not
trusted with rows: the last worker commits its unit itself and returns one manifest record. A unit whose worker
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
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from tilth import cluster, ui
from tilth.data.isolation import Lone, alone, isolate, refuse_hopeless
from tilth.data.ledger import Ledger, Record, Unit
from tilth.data.pools import crews, refuse_unplaceable, say_at_rest, watched
from tilth.data.threads import in_threads
from tilth.data.transform import Resources
from tilth.data.work import Work
from tilth.data.worker import UnitWorker, halted, record_of
from tilth.spilling import refuse_unspillable
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
        with closing(
            _inline(work, ledger) if resources.workers == 0 else _on_ray(work, ledger, resources, title)
        ) as records:
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


def units_at_once(in_flight: int, units: Sequence[Unit], workers: int = 1) -> int:
    """Units that each worker computes at once, in threads: as many as hold the rows that it should have in flight.

    Two at least where more than one row should be, so that the next is under way when one ends; its share at most.
    """
    if in_flight == 1:
        return 1
    wanted = max(2, math.ceil(in_flight / max(map(len, units))))
    return min(wanted, math.ceil(len(units) / workers), MOST_AT_ONCE)


def _inline(work: Work, ledger: Ledger) -> Generator[Record]:
    worker = UnitWorker(work, ledger.store)
    missing = ledger.missing()
    in_flight = max(leg.in_flight for leg in work.legs)
    if (at_once := units_at_once(in_flight, missing)) > 1:
        try:
            yield from in_threads(worker.commit, missing, at_once, lambda: ledger.halted)
        finally:
            worker.left = True
        return
    for unit in missing:
        if ledger.halted:
            return
        yield worker.commit(unit)


def _on_ray(work: Work, ledger: Ledger, resources: Resources, title: str) -> Generator[Record]:
    """Records as units commit; a unit that is not among them after three passes is isolated."""
    if ledger.halted:
        return
    ray = cluster.ray_ready()
    pools = [leg.resources or resources for leg in work.legs]
    refuse_unplaceable(pools)
    if len(pools) > 1:  # rows lie in the object store between them
        refuse_unspillable(ray)
    say_at_rest(title, pools)
    with watched(title, pools) as seen:
        for record in _passes(work, ledger, pools):
            seen()
            yield record
    if (missing := ledger.missing()) and not ledger.halted:
        lone = Lone(work, ledger.store, pools)
        refuse_hopeless(lone)
        for unit in missing:
            if not ledger.halted:
                yield isolate(lone, unit)


def _passes(work: Work, ledger: Ledger, pools: Sequence[Resources]) -> Iterator[Record]:
    missing = ledger.missing()
    yield from _pass(work, ledger.store, missing, pools, first=True)
    if ledger.missing() == missing and not ledger.halted:
        refuse_hopeless(Lone(work, ledger.store, pools))
        if len(pools) > 1:  # what lies between them may find no room, of which Ray Data does not tell
            yield from alone(Lone(work, ledger.store, pools), missing[0])
    for _ in range(PASSES - 1):
        if (missing := ledger.missing()) and not ledger.halted:
            yield from _pass(work, ledger.store, missing, pools)


def _pass(
    work: Work, store: Store, units: Sequence[Unit], pools: Sequence[Resources], first: bool = False
) -> Iterator[Record]:
    """One run over `units` on Ray Data; units whose worker died are missing from the answers.

    The first one ends early where more are lost than rows that kill their worker account for.
    """
    import ray

    found = crews(pools, len(units))
    # what is left after the first died with its worker: in less company, so that fewer do should one die again
    fewer = 1 if first else FEWER
    at_once = [
        max(1, units_at_once(leg.in_flight, units, crew.count) // fewer)
        for leg, crew in zip(work.legs, found, strict=True)
    ]
    in_work = sum(crew.count * (width + 1) for crew, width in zip(found, at_once, strict=True))
    _configure(
        ray.data.DataContext.get_current(), DEATHS * in_work if first else -1, in_work if len(pools) > 1 else None
    )
    given = [{"unit": json.dumps(asdict(unit)), "rows": b"", "record": ""} for unit in units]
    answers = ray.data.from_items(given, override_num_blocks=len(units))
    with warnings.catch_warnings():
        # Ray 2.60 has no other name yet for the last two settings
        warnings.filterwarnings("ignore", message="`ray_remote_args`")
        for leg, (pool, crew, width) in enumerate(zip(pools, found, at_once, strict=True)):
            answers = answers.map_batches(
                UnitWorker,
                fn_constructor_args=(work, store, leg),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(
                    size=crew.count,
                    # what waits on an actor that dies is missing with what it computed, and run in the next pass
                    max_tasks_in_flight_per_actor=width + (len(units) >= MANY_UNITS * crew.count * width),
                    max_concurrent_calls_per_actor=width,
                    enable_true_multi_threading=width > 1,
                ),
                ray_remote_args_fn=crew.placing,
                **pool.options,
                max_restarts=-1,
                max_task_retries=0,
            )
    try:
        for batch in answers.iter_batches(batch_size=1, prefetch_batches=0, batch_format="pyarrow"):
            yield from map(record_of, (line for line in batch["record"].to_pylist() if not halted(line)))
    except ray.exceptions.RayError:  # where more is lost than may be, the error of the last
        if not first:
            raise


def _configure(context: Any, lost: int, ahead: int | None) -> None:
    """A block is lost only with its worker: errors come back as answers, and the ledger sees what is missing."""
    from tilth.data.backpressure import let_few_wait

    let_few_wait(context, ahead)
    context.max_errored_blocks = lost
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
