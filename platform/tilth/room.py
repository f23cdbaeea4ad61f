"""Whether a cluster can ever hold the workers that a stage asks for. Ray alone would wait for them for ever."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tilth import ui
from tilth.errors import ClusterError

#: how long nodes that are on their way to a cluster may take to join it
JOIN_SECONDS, POLL_SECONDS = 30.0, 1.0
#: where nothing gets done for so long, it is asked whether the cluster has room for the workers at all
LACK_SECONDS = 60.0
#: what a monitor that only watches calls a node's type
_WATCHED = re.compile(r"node_[0-9a-f]+")
#: what a node has, and how many such nodes there may be
Shape = tuple[Mapping[str, float], float]


def refuse_unplaceable(
    each: Mapping[str, float],
    count: int,
    labels: Mapping[str, str] | None = None,
    join_seconds: float = JOIN_SECONDS,
) -> None:
    """ClusterError unless `count` workers of `each` (CPU, GPU, memory in bytes) fit on the nodes there can be.

    Those are the nodes with these labels and those that the autoscaler may start, of whose labels it does not tell.
    That they are busy now is no fault, nor what an autoscaler may yet start that does not tell what it can.
    """

    def lacking() -> str | None:
        room = capacity(each, shapes := _shapes(labels or {}))
        return None if room >= count else _missing(each, count, int(room), shapes, labels or {})

    refuse(lacking, join_seconds)


def refuse(lacking: Callable[[], str | None], join_seconds: float = JOIN_SECONDS) -> None:
    """ClusterError with what is lacking, where it still is once nodes on their way have had time to join.

    A secretive autoscaler starts nothing before it is asked, so that the stage has to go on and ask; what it waits for
    is said. `join_seconds` 0: ClusterError all the same, for who only wants to know what is lacking now.
    """
    end = time.monotonic() + join_seconds
    while (why := lacking()) is not None:
        if join_seconds and secretive():
            ui.reporter().say(f"waits for nodes: {why}")
            return
        if time.monotonic() >= end:
            raise ClusterError(why)
        time.sleep(POLL_SECONDS)


def say_lacking(title: str, place: Callable[[], None]) -> None:
    """What the cluster lacks, if `place` finds anything: Ray waits silently for a node that went to be replaced."""
    import ray

    if not ray.is_initialized():
        return
    try:
        place()
    except ClusterError as lacking:
        ui.reporter().say(f"{title}: waits for a place to go on: {lacking}")


def capacity(each: Mapping[str, float], shapes: Iterable[Shape]) -> float:
    """How many workers of `each` fit on nodes of these shapes; a worker never spans two nodes."""
    return sum(copies * _on_one(each, has) for has, copies in shapes)


def _on_one(each: Mapping[str, float], has: Mapping[str, float]) -> int:
    fitting = [has.get(name, 0.0) / need for name, need in each.items() if need]
    return math.floor(min(fitting, default=math.inf) + 1e-9) if fitting else 1


def held(labels: Mapping[str, str]) -> dict[str, float]:
    """What the nodes with these labels have together."""
    total: Counter[str] = Counter()
    for node in alive(labels):
        total.update(node["Resources"])
    return dict(total)


def alive(labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The nodes there are that have these labels; of its node's resources, this job's driver keeps its own."""
    import ray

    found = [node for node in ray.nodes() if node["Alive"] and labels.items() <= dict(node["Labels"]).items()]
    driver = _driver()
    return [_without(node, driver) for node in found]


def _without(node: dict[str, Any], driver: Mapping[str, Any]) -> dict[str, Any]:
    if node["NodeID"] != driver.get("driver_node_id"):
        return node
    kept = {"CPU": "entrypoint_num_cpus", "GPU": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
    left = {name: has - (driver.get(kept.get(name, "")) or 0.0) for name, has in node["Resources"].items()}
    return {**node, "Resources": left}


def _driver() -> Mapping[str, Any]:
    """What Ray keeps of the job whose driver this process is: where it runs, and what it holds as long as it runs."""
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.experimental.internal_kv import _internal_kv_get

    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR) or "{}").get("metadata", {}).get("job_submission_id")
    told = _internal_kv_get(f"_ray_internal_job_info_{job}", namespace="job") if job else None
    found: dict[str, Any] = json.loads(told or "{}")
    return found


def _shapes(labels: Mapping[str, str]) -> list[Shape]:
    """Every node there is, and what the autoscaler may add."""
    return [(node["Resources"], 1.0) for node in alive(labels)] + startable()


def startable() -> list[Shape]:
    """What the autoscaler may add, where there is one that told the cluster so."""
    config: Any = _config()
    groups = config.node_group_configs if config is not None else ()
    most = [math.inf if group.max_count < 0 else float(group.max_count) for group in groups]
    return [(dict(group.resources), copies) for group, copies in zip(groups, most, strict=True) if copies]


def _config() -> Any:
    from ray._private.state import state

    return state.get_cluster_config()


def secretive() -> bool:
    """Whether an autoscaler starts nodes here and does not tell which: none of Ray 2.60's own does.

    Every head of `ray start` has a monitor that looks like one and only watches. The second version's gives itself away
    by the group of the head, which who starts nodes has named; the first version's by the types of nodes that it
    reports, which one that only watches calls after their ids. KubeRay names groups without an autoscaler too: there,
    what is lacking is said every minute and not refused.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    if _config() is not None:
        return False
    if _internal_kv_get("__autoscaler_v2_enabled", namespace="__autoscaler") == b"1":
        return any("ray.io/node-group" in node["Labels"] for node in alive({}))
    report = json.loads(_internal_kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}
    types = (report.get("node_type_mapping") or {}).values()
    return any(not _WATCHED.fullmatch(kind) for kind in types)


def cannot() -> str:
    """How sure it is that what is lacking stays so."""
    return "cannot yet, for its autoscaler does not tell what it can start," if secretive() else "can never"


def _missing(each: Mapping[str, float], count: int, room: int, shapes: list[Shape], labels: Mapping[str, str]) -> str:
    wanted = f"{count} worker{'s' * (count > 1)} of {written(each)}"
    if labels:
        wanted += f" on nodes with {', '.join(f'{name}={value}' for name, value in labels.items())}"
    short = {
        name: max((has.get(name, 0.0) for has, _ in shapes), default=0.0)
        for name, need in each.items()
        if all(has.get(name, 0.0) < need for has, _ in shapes)
    }
    if not shapes:
        why = f"no node has these labels; nodes have {_labels() or 'none'}"
    elif short:
        lacks = ", ".join(
            f"{written({name: each[name]})} (the most that one has: {most:g})" for name, most in short.items()
        )
        why = f"no node has{'' if secretive() else ', or can be started with,'} {lacks}"
    else:
        why = f"its nodes have room for {room}: {'; '.join(written(has, each) for has, _ in shapes)}"
    return (
        f"a stage asks for {wanted}, and this cluster {cannot()} hold them: {why}; ask for less (resources, scale), or "
        "give the cluster such nodes"
    )


def _labels() -> str:
    """The labels of the nodes there are, those alone apart that name a single node."""
    found = {item for node in alive({}) for item in node["Labels"].items() if item[0] != "ray.io/node-id"}
    return ", ".join(f"{name}={value}" for name, value in sorted(found))


def written(resources: Mapping[str, float], names: Iterable[str] | None = None) -> str:
    """As people write it: CPU 4, GPU 1."""
    kept = resources if names is None else [name for name in names if name in resources]
    return (
        ", ".join(
            f"{name} {resources[name] / 2**30:.1f} GiB" if name == "memory" else f"{name} {resources[name]:g}"
            for name in kept
        )
        or "nothing"
    )
