"""Where Ray puts objects for which a node's memory has no room: a folder, without which work waits for ever."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from tilth.errors import ClusterError

#: how long nodes may take to say whether their folder takes files; one that is silent is not judged
ANSWER_SECONDS = 20.0
_FLAG = "--fallback_directory="


def refuse_unspillable(ray: Any) -> None:
    """ClusterError where the object store of a node could spill nothing: Ray would try it again and again, silently."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked: dict[Any, str] = {}
    for node in (node for node in ray.nodes() if node["Alive"]):
        place = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=True)
        task = ray.remote(fault_here).options(num_cpus=0, scheduling_strategy=place)
        asked[task.remote()] = node["NodeManagerAddress"]
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    faults = sorted({f"{asked[task]} ({why})" for task in ready if (why := ray.get(task))})
    if faults:
        raise ClusterError(
            f"the object store cannot spill to disk on {'; '.join(faults[:4])}: what finds no room in memory between "
            "two pools of workers would wait for ever; mend that folder, or start Ray with another "
            "(`ray start --object-spilling-directory`, RAY_object_spilling_directory for a local Ray)"
        )


def fault_here() -> str | None:
    """On a node, in a worker of Ray: why nothing can be written to the folder of its node, None where it can."""
    words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    folder = next((word.removeprefix(_FLAG) for word in words if word.startswith(_FLAG)), None)
    try:
        if folder is not None:
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None
