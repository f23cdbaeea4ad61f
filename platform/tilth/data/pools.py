"""How many workers each pool of a stage has, where several share a cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilth import room

if TYPE_CHECKING:
    from tilth.data.transform import Resources


@dataclass
class Node:
    """What is free on a node. `labels` are None of one that the autoscaler may start, which does not tell them."""

    free: dict[str, float]
    labels: dict[str, str] | None = None

    def take(self, pool: Resources) -> bool:
        """Put a worker there, where it may be and fits."""
        labels, each = pool.nodes.selector, pool.each
        if self.labels is not None and not labels.items() <= self.labels.items():
            return False
        if any(self.free.get(name, 0.0) < need - 1e-9 for name, need in each.items()):
            return False
        for name, need in each.items():
            self.free[name] -= need
        return True


def refuse_unplaceable(pools: Sequence[Resources], join_seconds: float = room.JOIN_SECONDS) -> None:
    """ClusterError unless a worker of each pool fits on the nodes there can be, all of them at once."""
    for pool in pools:  # each works with fewer than asked
        room.refuse_unplaceable(pool.each, 1, pool.nodes.selector, join_seconds)
    if len(pools) > 1:
        room.refuse(lambda: _lacking(pools, shared(pools, *_nodes(pools), most=1)), join_seconds)


@contextmanager
def watched(title: str, pools: Sequence[Resources]) -> Iterator[Callable[[], None]]:
    """Within: where the function that it gives is not called for a minute, it is said what the cluster lacks, if it
    does; as where the only node of a pool went."""
    over, last = threading.Event(), time.monotonic()

    def seen() -> None:
        nonlocal last
        last = time.monotonic()

    def watch() -> None:
        while not over.wait(max(0.0, last + room.LACK_SECONDS - time.monotonic())):
            if time.monotonic() - last >= room.LACK_SECONDS:
                seen()
                room.say_lacking(title, lambda: refuse_unplaceable(pools, 0))

    thread = threading.Thread(target=watch, daemon=True, name="tilth-room")
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def workers(pools: Sequence[Resources], most: int) -> list[int]:
    """Workers of each pool, `most` at most: one worker of each can always run beside the others."""
    if len(pools) == 1:
        return [min(pool.count(room.held(pool.nodes.selector)), most) for pool in pools]
    return [max(1, count) for count in shared(pools, *_nodes(pools), most=most)]


def shared(pools: Sequence[Resources], nodes: Sequence[Node], startable: Sequence[Node], most: int) -> list[int]:
    """The cluster shared out: one worker for each pool, then as many as are asked for, then in turn where it is auto.

    The largest are placed first, those with GPUs before others, which go where there are none, as Ray does. Nodes that
    may yet be started count for those that are asked for.
    """
    counts = [0] * len(pools)
    order = sorted(range(len(pools)), key=lambda index: (-pools[index].gpus, -pools[index].cpus))

    def grown(index: int, among: Iterable[Node]) -> bool:
        pool = pools[index]
        found = sorted(among, key=lambda node: not pool.gpus and node.free.get("GPU", 0) > 0)
        if counts[index] >= most or not any(node.take(pool) for node in found):
            return False
        counts[index] += 1
        return True

    everywhere = [*nodes, *startable]
    growing = [index for index in order if grown(index, everywhere)]
    asked = [index for index in growing if isinstance(pools[index].workers, int)]
    while asked := [index for index in asked if counts[index] < pools[index].count({}) and grown(index, everywhere)]:
        pass
    auto = [index for index in growing if not isinstance(pools[index].workers, int)]
    while auto := [index for index in auto if grown(index, nodes)]:
        pass
    return counts


def _nodes(pools: Sequence[Resources]) -> tuple[list[Node], list[Node]]:
    """The nodes that there are, and those that may be started, as many as the pools could use."""
    there = [Node(dict(node["Resources"]), dict(node["Labels"])) for node in room.alive({})]
    useful = sum(pool.workers if isinstance(pool.workers, int) else 1 for pool in pools)
    more = [Node(dict(has)) for has, copies in room.startable() for _ in range(int(min(copies, useful)))]
    return there, more


def _lacking(pools: Sequence[Resources], counts: Sequence[int]) -> str | None:
    left = [pool for pool, count in zip(pools, counts, strict=True) if not count]
    if not left:
        return None
    asked = "; ".join(room.written(pool.each) for pool in pools)
    return (
        f"a stage has {len(pools)} pools of workers that run at the same time, and this cluster can never hold one "
        f"worker of each ({asked}): none is left for {room.written(left[0].each)}; ask for less "
        "(resources of the stage or of its steps), let steps share the stage's workers, or give the cluster more nodes"
    )
