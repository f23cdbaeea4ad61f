"""Every node of the cluster that RAY_ADDRESS names, from within. Starts a task on each."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tilth import cluster
from tilth.doctor import machine
from tilth.doctor.finding import FAULT, OK, Finding

#: clocks further apart than this confuse logs, in seconds
SKEW_SECONDS, WAIT_SECONDS = 2.0, 60.0
#: what must be the same everywhere, and what only where it is: machines without a GPU need no vLLM
EVERYWHERE, WHERE_IT_IS = ("ray", "torch", "transformers", "peft", "pyarrow"), ("vllm",)


def nodes(store: str | None) -> list[Finding]:
    """What each node says of itself, whether its versions are the driver's, its clock right, its storage there."""
    ray = cluster.ray_ready()
    with _marked(store) as marker:
        return _asked(ray, store, marker)


@contextmanager
def _marked(store: str | None) -> Iterator[str]:
    """The name of a file that this process wrote to the store, empty where it cannot, which it says by itself."""
    from tilth.errors import TilthError
    from tilth.storage import Store

    marker = f"tilth-doctor-{uuid.uuid4().hex[:8]}"
    try:
        if store is not None:
            Store.at(store).write(marker, b"")
    except (TilthError, OSError):
        store = None
    yield marker if store is not None else ""
    if store is not None:
        Store.at(store).remove(marker)


def _asked(ray: Any, store: str | None, marker: str) -> list[Finding]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked: dict[Any, tuple[str, Any]] = {}
    for node in (node for node in ray.nodes() if node["Alive"]):
        place = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        there = {"num_cpus": 0, "scheduling_strategy": place}
        task = ray.remote(looked).options(**there).remote(store, marker)
        asked[task] = (node["NodeManagerAddress"], ray.remote(now).options(**there))
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=WAIT_SECONDS)
    found = [
        Finding("node", FAULT, f"does not answer in {WAIT_SECONDS:.0f} s", "look at its raylet's log", asked[task][0])
        for task in silent
    ]
    for task in ready:
        name, clock = asked[task]
        try:
            told = ray.get(task)
            # asked of a worker that is up: how long all nodes took to look around would hide what is between the clocks
            sent = time.time()
            there_now = ray.get(clock.remote(), timeout=WAIT_SECONDS)
            apart = max(0.0, there_now - time.time(), sent - there_now)
        except ray.exceptions.RayError as error:  # one that has no tilth, or that goes just now
            why = str(error).strip().splitlines()[-1]
            found.append(Finding("node", FAULT, f"cannot be looked at: {why}", "start every node from one image", name))
            continue
        found += [finding.on(name) for finding in [*_told(told), skewed(apart)]]
    return found


def now() -> float:
    """On one node: its clock."""
    return time.time()


def looked(store: str | None, marker: str = "") -> dict[str, Any]:
    """On one node: its versions, its findings; whether it sees what the driver wrote to the store."""
    found = list(machine.examined())
    if store is not None:
        from tilth.doctor.storage import seen, tried

        found += [*tried(store), *seen(store, marker)]
    return {"versions": versions(), "findings": found}


def versions() -> dict[str, str]:
    """What must be the same on driver and workers; builds of one version for CPUs and GPUs are."""
    found = {name: machine.version(name) or "missing" for name in EVERYWHERE}
    found |= {name: told for name in WHERE_IT_IS if (told := machine.version(name)) is not None}
    return {"python": platform.python_version()} | {name: told.partition("+")[0] for name, told in found.items()}


def _told(told: dict[str, Any]) -> list[Finding]:
    found: list[Finding] = list(told["findings"])
    ours = versions()
    other = [
        f"{name} {value}, the driver has {ours[name]}"
        for name, value in told["versions"].items()
        if value != ours.get(name, value)
    ]
    found.append(
        Finding("versions", FAULT, ", ".join(other), "start every node from one image")
        if other
        else Finding("versions", OK, ", ".join(f"{name} {value}" for name, value in ours.items()))
    )
    return found


def skewed(seconds: float) -> Finding:
    """What a difference of clocks means."""
    if seconds <= SKEW_SECONDS:
        return Finding("clock", OK, f"within {SKEW_SECONDS:.0f} s of the driver's")
    return Finding("clock", FAULT, f"{seconds:.0f} s apart from the driver's", "run chrony or another NTP client there")
