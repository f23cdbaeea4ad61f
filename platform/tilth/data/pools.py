"""How many workers each pool of a stage has, where several share a cluster."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilth import placing, room, ui
from tilth.meanwhile import repeated
from tilth.nodes import Workers
from tilth.placing import Node
from tilth.spilling import refuse_unspillable

if TYPE_CHECKING:
    from tilth.data.transform import Resources


@dataclass(frozen=True)
class Crew:
    """The workers of one pool; `nodes` are where each is to be, where several pools share a cluster."""

    count: int
    nodes: tuple[str | None, ...] = ()

    @property
    def placing(self) -> Callable[[], dict[str, Any]] | None:
        """Options for one worker after another, as Ray Data asks for them: left to itself, Ray spreads the workers of
        one pool over the nodes that those of another need."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if not any(self.nodes):
            return None
        turns = itertools.cycle(self.nodes)

        def options() -> dict[str, Any]:
            node = next(turns)
            # soft: where the node goes, the worker begins again on another
            return {} if node is None else {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}

        return options


def refuse_unplaceable(pools: Sequence[Resources], join_seconds: float = room.JOIN_SECONDS) -> None:
    """ClusterError unless a worker of each pool fits on the nodes there can be, all of them at once."""
    for pool in pools:  # each works with fewer than asked
        room.refuse_unplaceable(pool.each, 1, pool.nodes.selector, join_seconds)
    if len(pools) > 1:
        room.refuse(lambda: _lacking(pools, shared(pools, *_nodes(pools), most=1)), join_seconds)


def _refuse_stuck(pools: Sequence[Resources]) -> None:
    """ClusterError where workers have no place, or rows between two pools no room."""
    import ray

    refuse_unplaceable(pools, 0)
    if len(pools) > 1:
        refuse_unspillable(ray)


@contextmanager
def watched(title: str, pools: Sequence[Resources]) -> Iterator[Callable[[], None]]:
    """Within: where the function that it gives is not called for a minute, it is said what the cluster lacks, if it
    does; as where the only node of a pool went, or the disk broke to which its object store spills."""
    last = time.monotonic()

    def seen() -> None:
        nonlocal last
        last = time.monotonic()

    def watch() -> None:
        if time.monotonic() - last >= room.LACK_SECONDS:
            seen()
            room.say_lacking(title, lambda: _refuse_stuck(pools))

    with repeated(watch, lambda: max(0.0, last + room.LACK_SECONDS - time.monotonic()), "room"):
        yield seen


def crews(pools: Sequence[Resources], most: int) -> list[Crew]:
    """The workers of each pool, `most` at most: one of each always runs beside the others."""
    if len(pools) == 1:
        return [Crew(min(pool.count(_within_reach(pool, most)), most)) for pool in pools]
    placed = shared(pools, *_nodes(pools, most), most=most)
    return [Crew(max(1, len(nodes)), tuple(node.id for node in nodes)) for nodes in placed]


def _within_reach(pool: Resources, most: int) -> Mapping[str, float]:
    """What the nodes have together on which a pool may be, and those that may yet be started, as far as is told.

    Of those labels are not told, and of a group without a limit not how many: they are left out.
    """
    total = Counter(room.held(pool.nodes.selector))
    for has, copies in _limited() if not pool.nodes.selector else ():
        # in whole workers: none spans two nodes
        fit = min(copies * room.capacity(pool.each, [(has, 1.0)]), most)
        total.update({name: fit * need for name, need in pool.each.items()})
    return total


def _limited() -> list[room.Shape]:
    return [(has, copies) for has, copies in room.startable() if math.isfinite(copies)]


def say_at_rest(title: str, pools: Sequence[Resources]) -> None:
    """How many workers `auto` gives, where an autoscaler starts nodes and does not tell how many: none of those."""
    if any(not isinstance(pool.workers, int) for pool in pools) and room.secretive():
        counts = ", ".join(str(crew.count) for crew in crews(pools, sys.maxsize))
        ui.reporter().say(
            f"{title}: workers: auto gives {counts}, from the nodes that are there now; the cluster's autoscaler does "
            "not tell what it can start: to have it start more, give a number (resources.workers)"
        )


def shared(pools: Sequence[Resources], nodes: Sequence[Node], startable: Sequence[Node], most: int) -> list[list[Node]]:
    """The node of every worker: one for each pool, then as many as are asked for, then in turn where it is auto.

    Those with GPUs are placed first, others where there are none, and of both first those that may be on few nodes, and
    the largest. Nodes that may yet be started count for those that are asked for, and where it is auto for those that
    may be anywhere: of their labels nothing is told.
    """
    placed: list[list[Node]] = [[] for _ in pools]
    ones = [Workers(pool.each, labels=pool.nodes.selector) for pool in pools]
    order = sorted(range(len(pools)), key=lambda index: placing.size(ones[index]), reverse=True)

    def grown(index: int, among: Iterable[Node]) -> bool:
        node = placing.place(ones[index], among) if len(placed[index]) < most else None
        placed[index] += [node] if node is not None else []
        return node is not None

    everywhere = [*nodes, *startable]
    growing = [index for index in order if grown(index, everywhere)]
    asked = [index for index in growing if isinstance(pools[index].workers, int)]
    while asked := [i for i in asked if len(placed[i]) < pools[i].count({}) and grown(i, everywhere)]:
        pass
    auto = [index for index in growing if not isinstance(pools[index].workers, int)]
    while auto := [index for index in auto if grown(index, nodes if pools[index].nodes.selector else everywhere)]:
        pass
    return placed


def _nodes(pools: Sequence[Resources], most: int = 1) -> tuple[list[Node], list[Node]]:
    """The nodes that there are, and those that may be started, as many as the pools could use."""
    asked = sum(pool.workers if isinstance(pool.workers, int) else 1 for pool in pools)
    could = len(pools) * most  # of a group without a limit no more are started than are asked for
    return placing.there(), placing.startable(max(asked, could), asked)


def _lacking(pools: Sequence[Resources], placed: Sequence[Sequence[Node]]) -> str | None:
    left = [pool for pool, nodes in zip(pools, placed, strict=True) if not nodes]
    if not left:
        return None
    asked = "; ".join(room.written(pool.each) for pool in pools)
    return (
        f"a stage has {len(pools)} pools of workers that run at the same time, and this cluster {room.cannot()} hold "
        f"one worker of each ({asked}): none is left for {room.written(left[0].each)}; ask for less "
        "(resources of the stage or of its steps), let steps share the stage's workers, or give the cluster more nodes"
    )
