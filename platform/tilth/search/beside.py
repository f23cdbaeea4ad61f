"""Whether a cluster has room for a trial's other stages while a pack holds a part of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from tilth import cluster, placing, room
from tilth.trials import Packs

if TYPE_CHECKING:
    from tilth.nodes import Workers
    from tilth.recipe import Stage
    from tilth.search.bench import Bench


def placed(bench: Bench, trials: Iterable[str], packs: Packs) -> Packs:
    """The packs, or all of these trials apart where the cluster cannot hold a pack beside what one trial runs."""
    if packs.holds:
        cluster.ray_ready()
    why = next((why for pack in packs.holds if (why := _crowded_out(bench, pack)) is not None), None)
    return packs if why is None else Packs(apart=dict.fromkeys(trials, why))


def _crowded_out(bench: Bench, pack: Workers) -> str | None:
    """Why what is run for one trial would wait for ever for a pack that waits for it; None where it need not.

    It is reckoned with every stage, whether or not it is run again.
    """
    for name, stage in bench.recipe.stages.items():
        if name != bench.target and not _both(pack, stage):
            return (
                f"a pack would hold {pack.count} x ({room.written(pack.each)}) while {name} runs for a trial with "
                f"{placing.written(stage.at_work)}, and the nodes of the cluster have not both"
            )
    return None


def _both(pack: Workers, stage: Stage) -> bool:
    """Whether the nodes there can be have a place for each worker of the pack and, at least, of the stage."""
    asked = [pack, *(replace(workers, count=workers.least) for workers in stage.at_work)]
    workers = sum(one.count for one in asked)
    return placing.together(asked, [*placing.there(), *placing.startable(workers, workers)])
