"""A machine of the cluster goes with all that runs on it, at a drawn point: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

import namespaces
from lose_a_node import ROWS, STEPS
from processes import until
from serving import beside_us
from tilth import ui
from tilth.errors import ClusterError
from tilth.train import launch
from training import MINILM, dataset, job_of, questions, stage_of

LACKING = "a stage asks for 2 workers of 1 CPU each, and there is room for 1"
#: starts a Ray of its own, as tests of `ray_session` do
SCRIPT = Path(__file__).with_name("lose_a_node.py")


def lost_in(what: str, folder: Path) -> dict[str, Any]:
    environment = {name: value for name, value in beside_us().items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), what, str(folder)], capture_output=True, text=True, timeout=500,
        env=environment,
    )  # fmt: skip
    print(next((line for line in done.stdout.splitlines() if line.startswith("TILTH_LOSS_SEED")), ""))
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.long
def test_a_node_that_goes_while_rows_are_made_loses_none_and_doubles_none(tmp_path: Path) -> None:
    found = lost_in("augment", tmp_path)
    assert found["lost"] == 1
    assert found["nodes"] >= 2
    assert found["same"]
    assert (found["counts"]["inputs"], found["counts"]["accepted"], found["rejected"]) == (ROWS, 3 * ROWS, 0)


@pytest.mark.slow
def test_a_host_that_is_cut_off_loses_none_and_doubles_none_though_it_goes_on(tmp_path: Path) -> None:
    if why := namespaces.missing():
        pytest.skip(why)
    found = lost_in("partition", tmp_path)
    assert (found["lost"], found["nodes"]) == (1, 2)
    assert found["same"]
    assert (found["counts"]["inputs"], found["counts"]["accepted"], found["rejected"]) == (ROWS, 3 * ROWS, 0)


@pytest.mark.slow
def test_a_node_that_goes_takes_what_lies_between_two_pools_and_nothing_is_lost(tmp_path: Path) -> None:
    found = lost_in("pools", tmp_path)
    assert found["lost"] == 1
    assert found["same"]
    assert (found["counts"]["inputs"], found["counts"]["accepted"], found["rejected"]) == (ROWS, 4 * ROWS, 0)


@pytest.mark.slow
def test_training_goes_on_elsewhere_when_its_node_goes_and_the_trace_is_the_same(tmp_path: Path) -> None:
    found = lost_in("sft", tmp_path)
    assert found == {"same": True, "steps": STEPS, "lost": 1}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["learner", "rollouts"])
def test_learning_from_feedback_goes_on_elsewhere_and_the_trace_is_the_same(tmp_path: Path, what: str) -> None:
    found = lost_in(what, tmp_path)
    assert found == {"same": True, "steps": 6, "lost": 1}


@pytest.mark.slow
def test_trials_of_a_node_that_goes_are_begun_again_and_score_the_same(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp_cors", reason="Ray's dashboard needs ray[default], see requirements/cluster.txt")
    found = lost_in("search", tmp_path)
    assert found == {"same": True, "states": ["complete"] * 3, "lost": 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_training_without_a_place_says_what_is_lacking(tmp_path: Path, monkeypatch: Any, workers: int) -> None:
    said: list[str] = []
    asked: list[tuple[Any, ...]] = []

    def lacking(*args: Any, join_seconds: float) -> None:
        asked.append((*args, join_seconds))
        raise ClusterError(LACKING)

    monkeypatch.setattr(launch.room, "LACK_SECONDS", 0.2)
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(launch.room, "refuse_unplaceable", lacking)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ui.reporter(), "say", lambda text, **_: said.append(text) if "waits" in text else None)
    dataset(tmp_path, questions(8))
    job = job_of(tmp_path, stage_of("sft", MINILM, {}, scale={"workers": workers, "micro_batch": 4}))
    with launch._progress(job):
        assert until(lambda: said, 3) == bool(workers)
    assert bool(asked) == bool(workers)
    assert [args[1:] for args in asked] == len(asked) * [(2, {}, 0)]
    assert set(said) <= {f"{job.name}: waits for a place to go on: {LACKING}"}
