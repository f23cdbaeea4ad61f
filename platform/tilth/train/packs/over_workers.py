"""A pack on Ray Train workers: each trains it as one process would, and a desk asks the search for all of them.

The search is asked where it runs: for the next trial, whether one goes on, and who takes what came of one. Between it
and the workers lies a small actor, the desk. It starts the workers too, so that they end with it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from tilth import cluster, orphans, room
from tilth.errors import StageError
from tilth.storage import Store
from tilth.train import launch
from tilth.train.packs.fit import on_workers

if TYPE_CHECKING:
    from tilth.train.config import Scale
    from tilth.trials import Judge, Outcome, Report, Trial

#: how long a worker on which a trial failed waits for the others to have ended it too
ALIKE_SECONDS = 120.0
#: how long workers that were killed may take to be gone
GONE_SECONDS, POLL_SECONDS = 30.0, 0.1


@dataclass(frozen=True)
class Begin:
    """A worker begins: each of a new group does."""

    actor: Any


@dataclass(frozen=True)
class Next:
    """Asked for a trial; None where there are no more."""


@dataclass(frozen=True)
class Broke:
    """What ended the pack on a worker, and would end it again there."""

    error: Exception


@dataclass(frozen=True)
class Over:
    """The workers have ended; why, where they failed."""

    why: str


@dataclass(frozen=True)
class Plan:
    """What the workers are started with."""

    name: str
    scale: Scale
    store: Store
    places: int
    #: seconds; see ALIKE_SECONDS
    alike: float


@dataclass
class Search:
    """The side of the search: it answers what the workers ask."""

    trials: Iterator[Trial]
    judge: Judge
    workers: list[Begin] = field(default_factory=list)
    #: handed out and not ended: a new group of workers is given these first, and they go on from their checkpoints
    begun: dict[str, Trial] = field(default_factory=dict)
    _again: list[Trial] = field(default_factory=list)

    def answer(self, what: Begin | Next | Report | Broke) -> Any:
        if isinstance(what, Broke):
            raise what.error
        if isinstance(what, Begin):
            self.workers.append(what)
            self._again = list(self.begun.values())
            return None
        return self._next() if isinstance(what, Next) else self.judge(what)

    def _next(self) -> Trial | None:
        if self._again:
            return self._again.pop(0)
        if (trial := next(self.trials, None)) is None:
            return None
        # what the trial stands in is large, and no business of a worker
        self.begun[trial.name] = replace(trial, out=replace(trial.out, recipe=None, run=None))
        return self.begun[trial.name]


def pack(trials: Iterable[Trial], places: int, judge: Judge) -> Iterator[Outcome]:
    """Train `trials` where the scale of the first says, which is that of all. See `Stage.pack`."""
    trials = iter(trials)
    if (first := next(trials, None)) is None:
        return
    stage: Any = first.stage
    every = chain([first], trials)
    if on_workers(stage.scale):
        store = Store.at(f"{first.out.store.url}.pack")  # beside what the trial leaves
        plan = Plan(f"pack-{uuid.uuid4().hex}", stage.scale, store, places, ALIKE_SECONDS)
        yield from _outcomes(plan, Search(every, judge))
    else:
        from tilth.train.packs.pack import pack as here

        yield from here(every, places, judge)


def _outcomes(plan: Plan, search: Search) -> Iterator[Outcome]:
    """Start the workers, answer what they ask, and end them, whatever happens."""
    from tilth.trials import Outcome

    ray = cluster.ray_ready()
    launch.place(plan.scale)
    desk = ray.remote(num_cpus=0)(Desk).remote()
    heard: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    # Ray cannot be waited for where a signal ends the waiting, such as that of a limit; a queue can
    threading.Thread(target=_listen, args=(desk, heard), daemon=True, name="tilth-pack").start()
    desk.work.remote(plan)
    try:
        while True:
            key, what = _heard(heard, plan, search)
            if isinstance(what, Over):
                if what.why:
                    raise StageError(f"packs: {what.why}")
                return
            if isinstance(what, Outcome):
                search.begun.pop(what.trial, None)
                yield what
                desk.answer.remote(key, None)
            else:
                desk.answer.remote(key, search.answer(what))
    finally:
        _end(desk, search.workers)
        plan.store.remove()


def _heard(heard: queue.SimpleQueue[tuple[Any, Any]], plan: Plan, search: Search) -> tuple[Any, Any]:
    """What is asked next; while no worker has begun it is said what the cluster lacks for them."""
    while True:
        try:
            return heard.get(timeout=room.LACK_SECONDS)
        except queue.Empty:
            if not search.workers:
                room.say_lacking("packs", lambda: launch.place(plan.scale, join_seconds=0))


def _listen(desk: Any, heard: queue.SimpleQueue[tuple[Any, Any]]) -> None:
    """Hand on what the desk hears, until it is no more."""
    import ray

    try:
        while True:
            heard.put(ray.get(desk.heard.remote()))
    except Exception as error:  # noqa: BLE001 - told where the search is: nothing will be heard any more
        heard.put((None, Over(f"the workers are not heard any more: {error}")))


def _end(desk: Any, workers: list[Begin]) -> None:
    """Kill the workers, and wait until Ray knows them dead: what they were at may be begun elsewhere right after.

    Then the places are given back that they held or, where they had not begun, were to hold.
    """
    import ray

    actors = [worker.actor for worker in workers]
    ending = orphans.started_by(desk) | {actor._actor_id.hex() for actor in actors}
    for actor in (desk, *actors):
        ray.kill(actor)
    end = time.monotonic() + GONE_SECONDS
    while orphans.living(ending) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    orphans.give_back()


class Desk:
    """Where the workers ask, and the search listens and answers."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()
        self._answers: dict[Any, asyncio.Future[Any]] = {}
        self._there: dict[Any, int] = {}
        self._all: dict[Any, asyncio.Event] = {}

    async def work(self, plan: Plan) -> None:
        """Train on workers; how that ended is heard, after all that they asked."""
        import ray

        actor = ray.get_runtime_context().current_actor
        why = await asyncio.to_thread(_fit, plan, actor)
        await self._asked.put((None, Over(why)))

    async def heard(self) -> tuple[Any, Any]:
        return await self._asked.get()

    async def answer(self, key: Any, answer: Any) -> None:
        self._answers.pop(key).set_result(answer)

    async def ask(self, key: Any, what: Any) -> Any:
        """What the search answers."""
        self._answers[key] = asyncio.get_running_loop().create_future()
        await self._asked.put((key, what))
        return await self._answers[key]

    async def meet(self, key: Any, workers: int, seconds: float | None) -> bool:
        """Wait until so many workers are here; False where they are not after so many seconds."""
        everyone = self._all.setdefault(key, asyncio.Event())
        self._there[key] = self._there.get(key, 0) + 1
        if self._there[key] == workers:
            everyone.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(everyone.wait(), seconds)
        return everyone.is_set()


def _fit(plan: Plan, desk: Any) -> str:
    """Why the workers failed for good; empty where they did not."""
    from ray.train.torch import TorchTrainer

    from tilth.train.packs.rank import run

    trainer = TorchTrainer(
        run,
        train_loop_config={"plan": plan, "desk": desk},
        torch_config=launch.torch_config(plan.scale),
        scaling_config=launch.scaling(plan.scale),
        run_config=launch.run_config(plan.name, plan.store, plan.scale),
    )
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001 - raised where the search is, as what ended the pack
        return launch.cause(error)
    return ""
