"""Whether a cluster has room for a trial's other stages while a pack holds a part of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tilth import cluster, room
from tilth.errors import ClusterError
from tilth.trials import Packs

if TYPE_CHECKING:
    from tilth.search.bench import Bench


def placed(bench: Bench, trials: Iterable[str], packs: Packs) -> Packs:
    """The packs, or all of these trials apart where the cluster cannot hold a pack beside what one trial runs."""
    why = _crowded_out(bench, packs.holds)
    return packs if why is None else Packs(apart=dict.fromkeys(trials, why))


def _crowded_out(bench: Bench, holds: Mapping[str, float]) -> str | None:
    """Why what is run for one trial would wait for ever for a pack that holds so much, while the pack waits for it.

    None where it need not. It is reckoned with the stage that takes the most, whether or not it is run again.
    """
    if not holds:
        return None
    cluster.ray_ready()
    for name, stage in bench.recipe.stages.items():
        if name == bench.target:
            continue
        taken = {what: holds.get(what, 0.0) + stage.demand.get(what, 0.0) for what in {*holds, *stage.demand}}
        try:
            room.refuse_beyond(taken, join_seconds=0)
        except ClusterError:
            return (
                f"a pack would hold {room.written(holds)} while {name} runs for a trial with "
                f"{room.written(stage.demand)}, and the cluster has not both"
            )
    return None
