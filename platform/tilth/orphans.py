"""Places on a cluster that nobody gives back. Ray keeps what an actor has reserved until the job ends, not the actor.

Ray Train has a cleaner for it, which asks a dashboard whether its run is gone: a local Ray has none. Here the tables
are read that every Ray has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any

from tilth.meanwhile import repeated

SWEEP_SECONDS = 1.0


def give_back() -> None:
    """Remove the placement groups of this job whose makers, which were actors, are dead."""
    from ray import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for group in _groups():
        if group.creator_actor_dead and group.creator_job_id == _job().binary() and _made_by_actor(group):
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def given_back() -> AbstractContextManager[None]:
    """Within, that is done every second: what waits for such a place would wait for ever."""
    return repeated(give_back, lambda: SWEEP_SECONDS, "places")


def started_by(actor: Any) -> set[str]:
    """The ids of the living actors that this one has started itself."""
    table = _state().actor_table(None, job_id=_job())
    if (itself := table.get(actor._actor_id.hex())) is None:  # it has started nothing yet
        return set()
    alive = {name: told for name, told in table.items() if told["State"] != "DEAD"}
    return {name for name, told in alive.items() if told["OwnerAddress"] == itself["Address"]}


def living(actors: Collection[str]) -> bool:
    """Whether any of the actors with these ids is not known to be dead."""
    found = (_state().actor_table(name) for name in actors)
    return any(told.get("State", "DEAD") != "DEAD" for told in found)


def _groups() -> Iterator[Any]:
    """What the cluster knows of each placement group that is not removed."""
    from ray.core.generated import gcs_pb2

    kinds = gcs_pb2.PlacementGroupTableData
    for told in _state()._connect_and_get_accessor().get_placement_group_table():
        group = kinds.FromString(told)
        if group.state != kinds.REMOVED and not group.is_detached:
            yield group


def _made_by_actor(group: Any) -> bool:
    """What a driver makes names no actor, and is marked as if that were dead."""
    return bool(group.creator_actor_id.strip(b"\xff"))


def _job() -> Any:
    import ray

    return ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))


def _state() -> Any:
    from ray._private.state import state

    return state
