"""Packs of a search on Ray Train workers: each trial as it would have been alone on as many."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from processes import alive, descendants, titled, until
from test_packs import alone, assert_same, trace
from test_search import trials
from tilth.data.schema import original
from tilth.recipe import load
from tilth.runs import Run
from tilth.search.one_by_one import limited
from tilth.storage import Store
from tilth.train import trace as traces
from tilth.train.sft import Sft
from tilth.trials import Outcome, Report, TimeOverError
from tiny import model_folder
from together import packed, sft, trial
from training import dataset

WIDE = {"workers": 2, "cpus": 0.5}
SOUND = ["q_proj", "v_proj"]


def recipe(
    root: Path,
    space: dict[str, list[Any]],
    runner: dict[str, Any],
    deepspeed: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    """A search over a small Llama on two workers."""
    rows = [{"prompt": f"Thing {n} is", "completion": f" green{'er' * (n % 4)}."} for n in range(12)]
    stages = {
        "data": {"kind": "data", "row": "completion", "source": {"kind": "inline", "rows": rows}, "split": {}},
        "sft": {
            "kind": "sft", "data": "@data", "max_length": 64,
            "model": {"name": str(root / "llama"), "lora": {"targets": SOUND}},
            "optimisation": {"global_batch": 4, "steps": 4}, "scale": {**WIDE, "deepspeed": deepspeed},
        },
        "search": {
            "kind": "search", "stage": "sft", "metric": "train_loss", "mode": "min", "searcher": {"kind": "grid"},
            "space": {path: {"kind": "choice", "values": values} for path, values in space.items()}, "runner": runner,
            **more,
        },
    }  # fmt: skip
    return load({"name": "wide", "stages": stages})


def checkpointed(root: Path, count: int) -> dict[str, Any]:
    """So many trials of different ranks on two workers, with a checkpoint at each of four steps."""
    rows = [original(f"r{n:02}", "train", {"text": f"row {n}" + " on" * (n % 3)}) for n in range(12)]
    dataset(root, rows, "text")
    model_folder(root / "llama", "llama")
    fields = {"scale": WIDE, "checkpointing": {"every_steps": 1}}
    return {f"t{n}": sft(root, {"kind": "lora", "rank": 2 + n}, fields=fields, steps=4) for n in range(count)}


def free(ray: Any) -> bool:
    """Whether nothing holds a CPU of this Ray."""
    return bool(ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


RATES = {"model.lora.rank": [2, 5], "optimisation.learning_rate": [1e-2, 3e-3]}


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, {"stage": 1}, {"stage": 2}], ids=["plain", "ZeRO 1", "ZeRO 2"])
def test_trials_on_workers_are_as_they_would_have_been_alone(
    tmp_path: Path, ray_session: Any, deepspeed: dict[str, Any] | None
) -> None:
    """A pack averages gradients by itself where a trial alone is DeepSpeed's, and learns the same."""
    model_folder(tmp_path / "llama", "llama")
    unfit = {"model.lora.targets": [SOUND, ["nowhere"]]}
    done = Run(tmp_path / "packed").execute(recipe(tmp_path, RATES | unfit, {"kind": "packed", "places": 2}, deepspeed))
    told = trials(done["search"])
    failed = [trial for trial in told if trial["values"]["model.lora.targets"] == ["nowhere"]]
    assert [trial["state"] for trial in told].count("complete") == len(failed) == 4
    assert all("nowhere" in trial["error"] for trial in failed)
    Run(tmp_path / "alone").execute(recipe(tmp_path, RATES, {"kind": "one_by_one"}, deepspeed))
    stages = sorted((tmp_path / "alone/stages/sft").iterdir())
    assert len(stages) == 5, "one is the recipe as written"
    for stage in stages:
        ours, theirs = (trace(Store.at(tmp_path / where / "stages/sft" / stage.name)) for where in ("packed", "alone"))
        assert [sorted(line["rows"]) for line in ours] == [sorted(line["rows"]) for line in theirs]
        assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-4)
    assert not list(tmp_path.glob("packed/stages/sft/*.pack")), "what Ray Train keeps for itself goes with it"


def test_trials_share_a_pack_on_workers_where_they_ask_for_the_same(tmp_path: Path) -> None:
    dataset(tmp_path, [original(f"r{n}", "train", {"text": "a"}) for n in range(4)], "text")
    model_folder(tmp_path / "llama", "llama")

    def of(**scale: Any) -> Any:
        return sft(tmp_path, {"kind": "lora"}, fields={"scale": scale})

    names = {"labels": {"pool": "train"}}
    stages = {
        "wide": of(**WIDE), "wide too": of(**WIDE, micro_batch=1), "wide by ZeRO": of(**WIDE, deepspeed={"stage": 2}),
        "wider": of(workers=4), "wider too": of(workers=4), "with more": of(workers=4, cpus=2.0),
        "elsewhere": of(nodes=names), "elsewhere too": of(nodes=names), "with a GPU": of(gpus=1.0),
        "divided": of(**WIDE, deepspeed={"stage": 3}), "here": of(workers=0), "here too": of(), "no GPU": of(workers=0,
        gpus=1.0),
    }  # fmt: skip
    found = Sft.packs(stages, 8)
    assert sorted(map(sorted, found.together)) == [
        ["elsewhere", "elsewhere too"],
        ["here", "here too"],
        ["wide", "wide by ZeRO", "wide too"],
        ["wider", "wider too"],
    ]
    assert "ZeRO stage 3" in found.apart["divided"]
    assert "this process" in found.apart["no GPU"]
    tight = {name: of(**WIDE, memory_gib=1e-4) for name in "ab"}
    assert all("two trials need" in why for why in Sft.packs(tight, 8).apart.values()), "of each worker"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runner", "limit"), [({"kind": "one_by_one"}, 45), ({"kind": "tune", "at_once": 1}, 80)], ids=["alone", "tune"]
)
def test_training_on_workers_ends_with_the_time_of_its_trial(
    tmp_path: Path, ray_session: Any, runner: dict[str, Any], limit: int
) -> None:
    """And gives its workers' places back, so that the next one has them."""
    model_folder(tmp_path / "llama", "llama")
    steps = {"optimisation.steps": [1_000_000, 3]}
    began = time.monotonic()
    done = Run(tmp_path / "out").execute(recipe(tmp_path, steps, runner, limit=limit))
    assert time.monotonic() - began < 300
    assert [trial["state"] for trial in trials(done["search"])] == ["failed", "complete"]
    assert trials(done["search"])[0]["error"] == f"it took longer than its limit of {limit} s"
    assert until(lambda: free(ray_session), 30)


@pytest.mark.slow
def test_what_a_pack_has_learnt_is_taken_up_by_a_trial_that_goes_on_alone(tmp_path: Path, ray_session: Any) -> None:
    stage = checkpointed(tmp_path, 1)["t0"]

    def broken(report: Report) -> bool:
        if report.step == 3:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path, "on", {"t": stage}, judge=broken)
    left = Store.at(tmp_path / "on/t")
    traces.merge(left, 9)
    before = trace(left)
    assert [line["step"] for line in before][:2] == [1, 2]
    one = trial(tmp_path, "on", "t", stage)
    made = one.stage.run(one.out, one.inputs)
    assert trace(made)[:2] == before[:2], "the steps of the pack are not made again: these took the same seconds"
    assert_same(Outcome("t", made), alone(tmp_path, "whole", stage))


@pytest.mark.slow
def test_a_trial_that_fails_on_one_worker_alone_fails_alone(tmp_path: Path, ray_session: Any) -> None:
    """Of its trained model, which rank 0 alone saves: the other worker does not wait for it."""
    stages = checkpointed(tmp_path, 2)

    def spoiling(report: Report) -> bool:
        if (report.trial, report.step) == ("t0", report.steps):
            Store.at(tmp_path / "spoilt/t0").write("trace/00000001.jsonl", b"nothing that can be read")
        return True

    found = packed(tmp_path, "spoilt", stages, judge=spoiling)
    assert "JSONDecodeError" in found["t0"].why
    assert found["t0"].artifact is None
    assert [line["step"] for line in trace(found["t1"].artifact)] == [1, 2, 3, 4]  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_pack_whose_worker_dies_goes_on_and_one_that_is_closed_is_gone(tmp_path: Path, ray_session: Any) -> None:
    stages = checkpointed(tmp_path, 2)
    workers: list[list[int]] = []
    steps: list[int] = []

    def dying(report: Report) -> bool:
        steps.append(report.step)
        if report.step == 3 and not workers:
            workers.append(titled(descendants(os.getpid()), "RayTrainWorker"))
            os.kill(workers[0][0], signal.SIGKILL)
        return True

    found = packed(tmp_path, "dying", stages, judge=dying)
    assert all(outcome.artifact is not None for outcome in found.values()), found
    assert steps.count(1) == 2, "what was learnt before is not learnt again"
    for name, stage in stages.items():
        assert_same(found[name], alone(tmp_path, f"not dying {name}", stage))

    def over(report: Report) -> bool:
        workers.append(titled(descendants(os.getpid()), "RayTrainWorker"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path, "closed", stages, judge=over)
    assert len(workers[-1]) == 2
    assert until(lambda: not alive(workers[-1]), 10)
    assert until(lambda: free(ray_session), 30)

    def interrupt() -> None:
        until(lambda: not free(ray_session), 120)
        os.kill(os.getpid(), signal.SIGALRM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(TimeOverError), limited(600):
        packed(tmp_path, "closed before it began", stages)
    assert until(lambda: free(ray_session), 30)
