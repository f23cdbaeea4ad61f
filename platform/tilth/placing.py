"""Where workers of several kinds are put on the nodes of a cluster at the same time; none of them spans two nodes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from tilth import room
from tilth.nodes import Workers

#: sums of shares are no exact numbers
EXACT = 1e-9


@dataclass
class Node:
    """What is free on a node. `labels` are None of one that the autoscaler may start, which does not tell them."""

    free: dict[str, float]
    labels: dict[str, str] | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        #: what is free of each GPU: a worker's share lies on one of them
        self.gpus = [1.0] * int(self.free.get("GPU", 0.0))

    def take(self, one: Workers) -> bool:
        """Put one of these there, where it may be and fits."""
        if self.labels is not None and not one.labels.items() <= self.labels.items():
            return False
        if any(self.free.get(name, 0.0) < need - EXACT for name, need in one.each.items()):
            return False
        gpus = one.each.get("GPU", 0.0)
        share = min(1.0, gpus)
        devices = [at for at, left in enumerate(self.gpus) if left >= share - EXACT][: math.ceil(gpus)]
        if len(devices) < math.ceil(gpus):
            return False
        for at in devices:
            self.gpus[at] -= share
        for name, need in one.each.items():
            self.free[name] -= need
        return True


def there() -> list[Node]:
    """The nodes that there are, as if nothing ran on them."""
    return [Node(dict(node["Resources"]), dict(node["Labels"]), node["NodeID"]) for node in room.alive({})]


def startable(most: int, endless: int) -> list[Node]:
    """Nodes that the autoscaler may start: `most` of a group at most, `endless` of one without a limit."""
    return [
        Node(dict(has))
        for has, copies in room.startable()
        for _ in range(int(min(copies, endless if math.isinf(copies) else most)))
    ]


def place(one: Workers, among: Iterable[Node]) -> Node | None:
    """The first node that takes one of these, where it needs no GPU rather one that has none."""
    found = sorted(among, key=lambda node: "GPU" not in one.each and bool(node.gpus))
    return next((node for node in found if node.take(one)), None)


def size(one: Workers) -> tuple[float, int, float]:
    """By which workers are placed, the largest first: GPUs, then how few nodes they may be on, then CPUs."""
    return one.each.get("GPU", 0.0), len(one.labels), one.each.get("CPU", 0.0)


def together(asked: Sequence[Workers], nodes: Sequence[Node]) -> bool:
    """Put all of these on the nodes; whether there was a place for each."""
    return _put(sorted(asked, key=size, reverse=True), nodes)


def _put(order: Iterable[Workers], nodes: Sequence[Node]) -> bool:
    return all(place(one, nodes) is not None for one in order for _ in range(one.count))


def refuse_crowded(asked: Sequence[Workers], join_seconds: float = room.JOIN_SECONDS) -> None:
    """ClusterError unless the nodes there can be hold all of these at the same time, or as few as they go on with.

    Kinds are few, and every order of them is tried; a mixture so tight that no order finds it is refused too.
    """
    least = [replace(one, count=one.least) for one in asked]
    for one in least:
        room.refuse_unplaceable(one.each, one.count, one.labels, join_seconds)

    def lacking() -> str | None:
        count = sum(one.count for one in least)
        if any(_put(order, [*there(), *startable(count, count)]) for order in permutations(least)):
            return None
        names = {name: None for one in least for name in one.each}
        has = Counter(room.written(node.free, names) for node in there())
        return (
            f"a stage asks for {written(least)} at the same time, and this cluster {room.cannot()} hold them beside "
            f"each other: it has {', '.join(f'{number} x ({each})' for each, number in has.items())}; ask for less "
            "(scale, rollouts, scoring), or give the cluster more nodes"
        )

    room.refuse(lacking, join_seconds)


def written(asked: Iterable[Workers]) -> str:
    """What workers take, as people write it."""
    return " and ".join(f"{workers.count} x ({room.written(workers.each)})" for workers in asked) or "nothing"
