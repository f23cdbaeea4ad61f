"""Whether a cluster has room: what may still be started, and what a job's own driver keeps."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

import at_rest
from tilth import placing, room
from tilth.data import pools
from tilth.data.transform import Resources
from tilth.errors import ClusterError
from tilth.nodes import Nodes, Workers

HEAD = "aa11"
GPU = {"CPU": 1.0, "GPU": 1.0}
#: what the GCS keeps, by key, as each kind of monitor leaves it
V2 = {"__autoscaler_v2_enabled": b"1"}


def reported(*types: str) -> dict[str, bytes]:
    report = {"active_nodes": {}, "node_type_mapping": {f"node of {kind}": kind for kind in types}}
    return {"__autoscaling_status": json.dumps({"autoscaler_report": report}).encode()}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray as it answers in a cluster whose head has two CPUs: its nodes, and what its tables hold."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    return lambda held, **labels: at_rest.nodes(monkeypatch, {"CPU": 2.0}, held=held, labels=labels)


@pytest.mark.parametrize(
    ("held", "labels", "starts"),
    [
        (V2, {"ray.io/node-group": "headgroup"}, True),  # KubeRay and `ray up`
        (V2, {}, False),  # `ray start --head` alone: its monitor only watches
        (reported("head"), {}, True),
        (reported(f"node_{HEAD}"), {}, False),
        ({}, {}, False),
    ],
)
def test_what_an_autoscaler_may_start_is_waited_for(
    cluster: Any, capsys: pytest.CaptureFixture[str], held: dict[str, bytes], labels: dict[str, str], starts: bool
) -> None:
    cluster(held, **labels)

    def tried() -> None:
        room.refuse_unplaceable(GPU, 2, join_seconds=0.01)
        placing.refuse_crowded([Workers({"GPU": 1.0}), Workers({"CPU": 1.0, "GPU": 1.0})], join_seconds=0.01)
        pools.refuse_unplaceable([Resources(gpus=1), Resources()], 0.01)

    if not starts:
        with pytest.raises(ClusterError, match="this cluster can never hold them: no node has, or can be started with"):
            tried()
        return
    tried()
    assert "waits for nodes: a stage asks for 2 workers of CPU 1, GPU 1, and this cluster cannot yet" in (
        said := capsys.readouterr().err
    )
    assert "a stage asks for 1 x (GPU 1) and 1 x (CPU 1, GPU 1) at the same time" in said
    with pytest.raises(ClusterError, match=r"cannot yet, for its autoscaler .* hold them: no node has GPU 1"):
        room.refuse_unplaceable(GPU, 2, join_seconds=0)  # as it is said every minute


def test_workers_of_two_kinds_need_nodes_that_hold_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight CPUs in all and one GPU: enough by the sum, but two workers of three leave no node two of them."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    at_rest.nodes(monkeypatch, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0})
    actor = Workers({"CPU": 2.0, "GPU": 1.0})
    told = r"2 x \(CPU 3\) and 1 x \(CPU 2, GPU 1\) at the same time, .* never .* 1 x \(CPU 4, GPU 1\), 1 x \(CPU 4\);"
    with pytest.raises(ClusterError, match=told):
        placing.refuse_crowded([Workers({"CPU": 3.0}, 2), actor], join_seconds=0)
    placing.refuse_crowded([Workers({"CPU": 3.0}, 2, fewest=1), actor], join_seconds=0)
    placing.refuse_crowded([Workers({"CPU": 2.0}, 3), actor], join_seconds=0)
    with pytest.raises(ClusterError, match="2 workers of CPU 2, GPU 1"):
        placing.refuse_crowded([Workers({"CPU": 1.0}), Workers({"CPU": 2.0, "GPU": 1.0}, 2)], join_seconds=0)


def test_what_the_driver_of_a_job_holds_is_not_counted(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"entrypoint_num_cpus": 1.0, "entrypoint_memory": None, "driver_node_id": HEAD}
    cluster({"_ray_internal_job_info_sft-1": json.dumps(job).encode()})
    room.refuse_unplaceable({"CPU": 1.0}, 2, join_seconds=0)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "sft-1"}}))
    room.refuse_unplaceable({"CPU": 1.0}, 1, join_seconds=0)
    assert Resources().count(room.held({})) == 1
    with pytest.raises(ClusterError, match="its nodes have room for 1: CPU 1"):
        room.refuse_unplaceable({"CPU": 1.0}, 2, join_seconds=0)


def group(resources: dict[str, float], most: int) -> Any:
    return SimpleNamespace(resources=resources, max_count=most)


@pytest.mark.parametrize(
    ("groups", "most", "cpus", "gpus"),
    [
        ([], 99, 2, 1),
        ([group({"CPU": 8.0}, 4), group({"CPU": 4.0, "GPU": 4.0}, 2)], 99, 2 + 32 + 8, 8),
        ([group({"CPU": 8.0}, 4)], 10, 10, 1),  # no more than there are units
        ([group({"CPU": 8.0}, 0), group({"CPU": 8.0, "GPU": 1.0}, -1)], 99, 2, 1),  # none, and no limit that is told
    ],
)
def test_auto_is_what_a_cluster_at_rest_may_grow_to(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, groups: list[Any], most: int, cpus: int, gpus: int
) -> None:
    from ray._private.state import state

    cluster({})
    monkeypatch.setattr(state, "get_cluster_config", lambda: SimpleNamespace(node_group_configs=groups))
    found = [pools.crews([Resources(gpus=each)], most)[0].count for each in (0, 1)]
    assert found == [cpus, gpus]
    assert pools.crews([Resources(nodes=Nodes(spot=True))], most)[0].count == 1  # of labels nothing is told


@pytest.mark.parametrize("labels", [{"ray.io/node-group": "headgroup"}, {}])
def test_where_it_is_not_told_what_may_be_started_auto_says_what_it_counts(
    cluster: Any, capsys: pytest.CaptureFixture[str], labels: dict[str, str]
) -> None:
    cluster(V2, **labels)
    pools.say_at_rest("more", [Resources(workers=3)])
    assert not capsys.readouterr().err
    pools.say_at_rest("more", [Resources()])
    said = capsys.readouterr().err
    assert bool(said) == bool(labels)
    if labels:
        assert "more: workers: auto gives 2, from the nodes that are there now" in said
        assert "give a number (resources.workers)" in said
