"""Searches whose trials run on Ray Tune, or train."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from ray import tune

import at_rest
import tilth
from test_search import begun, searched, sft, trials
from tilth.errors import ClusterError
from tilth.nodes import Workers
from tilth.recipe import load
from tilth.runs import Run
from tilth.search import beside, one_by_one
from tilth.search.bench import Bench
from tilth.search.on_tune import NEXT_TO_NOTHING, at_once, refuse_unplaceable
from tilth.trials import Packs


@pytest.mark.slow
def test_trials_run_on_ray_tune(tmp_path: Path, ray_session: Any) -> None:
    space = {"x": {"kind": "choice", "values": [0.1, 0.3, 0.8]}}
    runner = {"kind": "tune", "at_once": 3}
    interrupted = signal.getsignal(signal.SIGINT)
    artifact = searched(tmp_path, {"raises": 0.7}, space=space, searcher={"kind": "grid"}, runner=runner)
    assert signal.getsignal(signal.SIGINT) is interrupted, "Ctrl-C is not Tune's any more"
    assert [trial["state"] for trial in trials(artifact)] == ["complete", "complete", "failed"]
    assert trials(artifact)[2]["error"] == "ValueError: x is 0.800"
    assert artifact.store.read("weights") == b"0.3"
    assert not list(tmp_path.glob("tune/*")), "what Tune keeps for itself goes with it"


def test_a_trial_takes_no_part_of_a_cpu_beside_its_stages() -> None:
    assert tune.with_resources(lambda config: None, NEXT_TO_NOTHING)._resources.bundles == [{"memory": 1}]


def bench_of(root: Path, scale: dict[str, Any], below: dict[str, Any] | None = None) -> Bench:
    """A search over a training of this scale, after a data stage, and on a model trained at the scale `below`."""
    data: Any = sft(**{"model.lora.rank": {"kind": "choice", "values": [4, 8]}})
    stages = data["stages"]
    stages["sft"]["scale"] = scale
    if below is not None:
        stages["base"] = {"kind": "sft", "data": "@data", "model": {"name": "org/model"}, "scale": below}
        stages["sft"]["model"]["name"] = "@base"
    held = load(data)
    search: Any = held.stages["search"]
    return Bench.of(search, held, Run(root))


def test_as_many_trials_run_at_once_as_the_nodes_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def together(*nodes: dict[str, float], **scale: Any) -> int:
        at_rest.nodes(monkeypatch, *nodes)
        bench = bench_of(tmp_path, scale)
        refuse_unplaceable(bench, join_seconds=0)
        return at_once(bench)

    assert together({"CPU": 8.0, "GPU": 1.0}, cpus=0.5, gpus=0.1) == 8, "by the data stage, which takes a CPU"
    assert together({"CPU": 99.0, "GPU": 1.0}, gpus=0.1) == 10
    assert together({"CPU": 99.0, "GPU": 1.0}, gpus=0.3) == 3
    elastic = {"workers": 2, "min_workers": 1, "cpus": 4.0}
    assert together({"CPU": 17.0}, **elastic) == 2
    assert together({"CPU": 4.0}, **elastic) == 1, "it goes on with one worker"
    with pytest.raises(ClusterError, match=r"a stage asks for 1 worker of CPU 4, and .* never hold them: no node has"):
        together({"CPU": 3.0}, **elastic)
    one_each = [{"CPU": 4.0, "GPU": 1.0}] * 2
    assert together(*one_each, workers=2, gpus=1.0) == 1
    assert together({"CPU": 3.0}, {"CPU": 3.0}, workers=1, cpus=2.0) == 2, "what is left on two nodes is no third"
    with pytest.raises(ClusterError, match="no node has, or can be started with, GPU 2"):
        together(*one_each, gpus=2.0)


def test_a_pack_leaves_room_on_single_nodes_for_a_trials_other_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes have six CPUs, as both ask for together, and neither has the two that are needed."""
    bench = bench_of(tmp_path, {}, below={"cpus": 2.0, "gpus": 1.0})
    at_rest.nodes(monkeypatch, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 1.0})
    monkeypatch.setattr("ray.is_initialized", lambda: True)

    def why(*holds: Workers) -> str | None:
        return beside.placed(bench, ["1", "2"], Packs((("1", "2"),), holds=holds)).apart.get("1")

    assert why() is None
    assert why(Workers({"CPU": 3.0})) is None
    assert why(Workers({"CPU": 3.0}), Workers({"CPU": 2.0}, 2)) == (
        "a pack would hold 2 x (CPU 2) while base runs for a trial with 1 x (CPU 2, GPU 1), and the nodes of the "
        "cluster have not both"
    )


@pytest.mark.slow
def test_a_trial_on_tune_may_take_every_cpu(tmp_path: Path, ray_session: Any) -> None:
    space = {"x": {"kind": "choice", "values": [0.1, 0.3]}}
    hill = {"kind": "searched:Wide"}
    artifact = searched(tmp_path, hill, space=space, searcher={"kind": "grid"}, runner={"kind": "tune"})
    assert [(trial["state"], trial["error"]) for trial in trials(artifact)] == [("complete", None)] * 2


@pytest.mark.slow
def test_trials_on_tune_that_hang_die_or_do_worse(tmp_path: Path, ray_session: Any) -> None:
    space = {"x": {"kind": "choice", "values": [0.1, 0.5, 0.8, 0.3]}}
    runner = {"kind": "tune", "at_once": 4}
    faults = {"hangs": 0.4, "dies": 0.7}
    artifact = searched(tmp_path, faults, space=space, searcher={"kind": "grid"}, limit=60, runner=runner)
    assert [trial["state"] for trial in trials(artifact)] == ["complete", "failed", "failed", "complete"]
    hung, died = (trial["error"] for trial in trials(artifact)[1:3])
    assert hung == "it took longer than its limit of 60 s"
    assert died.startswith("its process died 3 times: 3 (occurred at")
    assert "The actor died" in died
    assert sorted(begun(tmp_path)) == [1, 1, 1, 1, 3], "one is the recipe as written"
    scheduler = {"kind": "asha", "metric": "error", "factor": 2, "grace": 2}
    slow = {"steps": 20, "pause": 0.5}
    one_at_a_time = {"kind": "tune", "at_once": 1}
    artifact = searched(tmp_path / "asha", slow, space={"x": {"kind": "choice", "values": [0.3, -1.0]}},
                        searcher={"kind": "grid"}, scheduler=scheduler, runner=one_at_a_time)  # fmt: skip
    assert [trial["state"] for trial in trials(artifact)] == ["complete", "pruned"]


@pytest.mark.slow
def test_adapters_are_searched_and_the_best_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: Any
) -> None:
    from tiny import model_folder

    monkeypatch.setattr(one_by_one, "POLL_SECONDS", 0.01)
    monkeypatch.setattr("tilth.train.watch.PROGRESS_SECONDS", 0.0)
    rows = [{"text": f"{word} number {i}"} for i in range(12) for word in ("card", "rate")]
    stages = {
        "data": {
            "kind": "data",
            "row": "text",
            "source": {"kind": "inline", "rows": rows},
            "split": {"validation": 0.3},
        },
        "sft": {
            "kind": "sft",
            "data": "@data",
            "max_length": 24,
            "model": {"name": str(model_folder(tmp_path / "tiny", "llama")), "lora": {"rank": 8}},
            "optimisation": {"learning_rate": 1e-2, "steps": 30, "global_batch": 4},
            "validation": {"split": "validation", "every_steps": 1},
            "scale": {"workers": 0},
        },
        "search": {
            "kind": "search",
            "stage": "sft",
            "metric": "validation_loss",
            "mode": "min",
            "searcher": {"kind": "grid"},
            "scheduler": {"kind": "asha", "factor": 2, "grace": 4},
            "space": {
                "optimisation.learning_rate": {"kind": "choice", "values": [1e-2, 1e-9]},
                "model.lora.rank": {"kind": "choice", "values": [2, 4]},
            },
        },
    }
    done = tilth.run({"name": "ranks", "stages": stages}, tmp_path / "run")["search"]
    found = trials(done)
    assert [trial["state"] for trial in found[2:]] == ["pruned", "pruned"], "nothing is learnt at such a rate"
    assert all(0 < len(trial["curve"]) < 30 for trial in found[2:])
    best = min((trial for trial in found if trial["scores"]), key=lambda trial: trial["scores"]["validation_loss"])
    config = json.loads(done.store.read("model/adapter_config.json"))
    asked, rank = (best["number"], best["values"]["model.lora.rank"]), config["r"]
    if done.detail["search"]["best"] is None:  # no trial beats the recipe as it is written
        assert rank == 8
        assert done.metrics["validation_loss"] <= best["scores"]["validation_loss"]
    else:
        assert (done.detail["search"]["best"], rank) == asked
        assert done.metrics["validation_loss"] == best["scores"]["validation_loss"]
