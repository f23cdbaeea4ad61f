"""A search whose process is killed and run again: its trials go on from their checkpoints, whoever runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from processes import until
from test_search import trials
from tilth.recipe import load
from tilth.runs import Artifact, Run
from tilth.storage import Store
from tilth.train import trace
from tiny import model_folder

STEPS, SEEN, TRIALS = 24, 3, 3


def recipe(root: Path, runner: dict[str, Any]) -> dict[str, Any]:
    """A search over a small Llama with a checkpoint at every step; its trials are drawn at random."""
    rows = [{"prompt": f"Thing {n} is", "completion": f" green{'er' * (n % 4)}."} for n in range(12)]
    stages = {
        "data": {"kind": "data", "row": "completion", "source": {"kind": "inline", "rows": rows}, "split": {}},
        "sft": {
            "kind": "sft", "data": "@data", "max_length": 64, "checkpointing": {"every_steps": 1},
            "model": {"name": str(root / "llama"), "lora": {"targets": ["q_proj", "v_proj"]}},
            "optimisation": {"global_batch": 4, "steps": STEPS}, "scale": {"workers": 0},
        },
        "search": {
            "kind": "search", "stage": "sft", "metric": "train_loss", "mode": "min", "trials": TRIALS,
            "searcher": {"kind": "tpe", "startup": TRIALS}, "runner": runner,
            "space": {
                "model.lora.rank": {"kind": "choice", "values": [2, 4, 8]},
                "optimisation.learning_rate": {"kind": "loguniform", "low": 1e-4, "high": 1e-2},
            },
        },
    }  # fmt: skip
    return {"name": "killed", "stages": stages}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("killed")
    model_folder(root / "llama", "llama")
    return root


@pytest.fixture(scope="module")
def whole(root: Path) -> Artifact:
    """The search that nothing interrupted, a trial after another, under `root/whole`."""
    return Run(root / "whole").execute(load(recipe(root, {"kind": "one_by_one"})))["search"]


def asked(out: Path) -> dict[str, Any]:
    """The values of every trial that was asked."""
    files = sorted(out.glob("stages/search/*/trials/*.json"))
    return {file.name: json.loads(file.read_text())["values"] for file in files}


def under_way(out: Path) -> dict[str, int]:
    """The trainings that do not end soon, with the step of their newest checkpoint."""
    latest = {file.parents[2].name: json.loads(file.read_text()) for file in
              out.glob("stages/sft/*/checkpoints/*/latest.json")}  # fmt: skip
    return {name: told["step"] for name, told in latest.items() if SEEN <= told["step"] < STEPS - SEEN}


def lines(store: Store, last: int) -> list[trace.Line]:
    """What a training that goes on has noted of the steps up to `last`."""
    trace.merge(store, last)
    return trace.read(store)


def killed(root: Path, out: Path, runner: dict[str, Any], together: int) -> dict[str, int]:
    """Kill a search while so many of its trials are trained; the step of each one's newest checkpoint."""
    file = root / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(recipe(root, runner)))
    process = subprocess.Popen(
        [sys.executable, *f"-m tilth run {file} --out {out}".split()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert until(lambda: asked(out) and len(under_way(out)) >= together, 300)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return under_way(out)


@pytest.mark.parametrize(
    ("runner", "together"),
    [
        pytest.param({"kind": "one_by_one"}, 1, id="one_by_one", marks=pytest.mark.long),
        pytest.param({"kind": "packed", "places": 2}, 2, id="packed", marks=pytest.mark.long),
        pytest.param({"kind": "tune", "at_once": 2}, 2, id="tune", marks=pytest.mark.slow),
    ],
)
def test_trials_of_a_killed_search_go_on_from_their_checkpoints(
    root: Path, whole: Artifact, runner: dict[str, Any], together: int, request: pytest.FixtureRequest
) -> None:
    out = root / runner["kind"]
    reached = killed(root, out, runner, together)
    known = asked(out)
    left = {name: lines(Store.at(out / "stages/sft" / name), step) for name, step in reached.items()}
    assert len(reached) >= together
    if runner["kind"] == "tune":
        request.getfixturevalue("ray_session")
    done = Run(out).execute(load(recipe(root, runner)))["search"]
    assert known
    assert known.items() <= asked(out).items(), "nothing is asked again"
    ours, theirs = trials(done), trials(whole)
    assert [(trial["number"], trial["values"], trial["state"]) for trial in ours] == [
        (trial["number"], trial["values"], "complete") for trial in theirs
    ]
    assert [trial["scores"]["train_loss"] for trial in ours] == [
        pytest.approx(trial["scores"]["train_loss"], rel=1e-4) for trial in theirs
    ]
    assert done.detail["search"]["best"] == whole.detail["search"]["best"]
    for name, before in left.items():
        made = trace.read(Store.at(out / "stages/sft" / name))
        assert made[: len(before)] == before, "no step is made again: these took the same seconds"
        alone = trace.read(Store.at(root / "whole/stages/sft" / name))
        assert [line["rows"] for line in made] == [line["rows"] for line in alone]
        assert [line["loss"] for line in made] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
