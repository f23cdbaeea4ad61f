"""Search: what is tried and left, what is shared and resumed, what is refused, and what is said of luck."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from processes import until
from searched import Hill
from tilth.errors import RecipeError, StageError, StorageError, TimeLimitError
from tilth.jobs.inside import _within
from tilth.planning import plan
from tilth.recipe import Recipe, load
from tilth.report import write_report
from tilth.report.search import _scaled as scaled
from tilth.runs import Artifact, Run
from tilth.search import one_by_one
from tilth.search.bench import Bench, Outcome
from tilth.search.choosing import Candidate, best_first, estimate, front, lead, verdicts, winner
from tilth.search.measures import Objective
from tilth.search.one_by_one import limited
from tilth.search.places import changed, grid
from tilth.search.space import Simplex
from tilth.search.study import Study
from tilth.search.trials import Asked, Journal, Trial
from tilth.storage import Store
from tilth.train.sft import Sft
from tilth.trials import TimeOverError

HERE = Path(__file__).parent
XS, WIDTHS = (-0.5, 0.0, 0.25, 0.5), (2, 8, 32)
GRID = {"x": {"kind": "choice", "values": list(XS)}, "inner.width": {"kind": "choice", "values": list(WIDTHS)}}
LINE = {"x": {"kind": "uniform", "low": -1.0, "high": 1.0}}


def data_of(hill: Mapping[str, Any] | None = None, **search: Any) -> dict[str, Any]:
    """A recipe in which a hill is searched by what a look at it sees, and the winner is looked at once more."""
    settings = {"kind": "search", "stage": "hill", "metric": "look/seen", "space": LINE, **search}
    stages = {
        "data": {"kind": "stages:Number", "value": 1},
        "hill": {"kind": "searched:Hill", "data": "@data", **(hill or {})},
        "look": {"kind": "searched:Look", "model": "@hill"},
        "search": settings,
        "test": {"kind": "searched:Look", "model": "@search", "split": "test"},
    }
    return {"name": "hills", "stages": stages}


def recipe(hill: Mapping[str, Any] | None = None, **search: Any) -> Recipe:
    return load(data_of(hill, **search))


def searched(out: Path, hill: Mapping[str, Any] | None = None, **search: Any) -> Artifact:
    return Run(out).execute(recipe(hill, **search))["search"]


def trials(artifact: Artifact) -> list[dict[str, Any]]:
    return artifact.detail["search"]["trials"]


def begun(out: Path, stage: str = "hill") -> list[int]:
    """How often each version of a stage was begun."""
    return [json.loads(file.read_text()) for file in sorted(out.glob(f"stages/{stage}/*/begun.json"))]


def test_a_grid_tries_every_point_and_leaves_the_best(tmp_path: Path) -> None:
    done = Run(tmp_path).execute(recipe(space=GRID, searcher={"kind": "grid"}))
    heights = {point: Hill.model_validate({"x": point[0], "inner": {"width": point[1]}}).height for point in
               product(XS, WIDTHS)}  # fmt: skip
    tried = {(trial["values"]["x"], trial["values"]["inner.width"]): trial["scores"]["look/seen"] for trial in
             trials(done["search"])}  # fmt: skip
    assert tried == pytest.approx({point: 10 * height for point, height in heights.items()})
    best = max(heights, key=lambda point: heights[point])
    assert best == (0.25, 8)
    assert done["search"].store.read("weights") == b"0.25"
    assert (done["search"].produces, done["search"].detail["parameters"]) == ("model", {"trainable": 8})
    assert done["test"].metrics["hill/seen"] == pytest.approx(10 * heights[best]), '"@search" is what "@hill" would be'
    assert done["search"].detail["search"]["importance"]["x"] > 0.8, "on this grid x matters more"


def test_what_a_value_does_not_reach_is_not_run_again(tmp_path: Path) -> None:
    both = {**GRID, "stages.data.note": {"kind": "choice", "values": ["", "other"]}}
    artifact = searched(tmp_path, space=both, searcher={"kind": "grid"})
    assert len(trials(artifact)) == 24
    assert len(list(tmp_path.glob("stages/data/*"))) == 2, "one for each note, one of which is the recipe's own"
    assert sorted(begun(tmp_path)) == [1] * 25, "the recipe as written stands outside of this grid"
    searched(tmp_path, space=both, searcher={"kind": "grid"}, also=[{"metric": "hill/seconds", "mode": "min"}])
    assert sorted(begun(tmp_path)) == [1] * 25, "another search over the same values finds them done"


def test_more_trials_begin_with_the_same_ones(tmp_path: Path) -> None:
    few, many = (searched(tmp_path, trials=count, searcher={"kind": "tpe", "startup": 3}) for count in (6, 9))
    assert [trial["values"] for trial in trials(many)[:6]] == [trial["values"] for trial in trials(few)]
    assert sorted(begun(tmp_path)) == [1] * 10


def test_tpe_comes_nearer_to_the_top_than_its_random_start(tmp_path: Path) -> None:
    artifact = searched(tmp_path, trials=30, searcher={"kind": "tpe", "startup": 8})
    far = [abs(trial["values"]["x"] - 0.3) for trial in trials(artifact)]
    assert sum(far[-10:]) < 0.5 * sum(far[:10])
    assert min(far) < 0.05


def test_a_killed_search_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    settings = {"trials": 6, "searcher": {"kind": "tpe", "startup": 2}}
    data = data_of({"steps": 4, "pause": 0.15}, **settings)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    out = tmp_path / "killed"
    path = {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, *f"-m tilth run {tmp_path / 'recipe.yaml'} --out {out}".split()]
    process = subprocess.Popen(command, env={**os.environ, **path}, stderr=subprocess.DEVNULL)
    try:
        assert until(lambda: len(list(out.glob("stages/search/*/trials/*.json"))) == 3, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    asked = {file.name: json.loads(file.read_text())["values"] for file in out.glob("stages/search/*/trials/*.json")}
    resumed = Run(out).execute(load(data))["search"]
    whole = searched(tmp_path / "whole", {"steps": 4}, **settings)
    assert [trial["values"] for trial in trials(resumed)] == [trial["values"] for trial in trials(whole)]
    assert asked == {f"{number:05d}.json": trials(whole)[number]["values"] for number in range(3)}
    assert sorted(begun(out))[:-1] == [1] * 6
    assert max(begun(out)) <= 2, "only the trial that was interrupted was begun again"


def test_a_trial_that_raises_or_hangs_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    values = {"x": {"kind": "choice", "values": [0.1, 0.5, 0.8]}}
    faults = {"raises": 0.7, "hangs": 0.4}
    artifact = searched(tmp_path, faults, space=values, searcher={"kind": "grid"}, limit=0.5)
    assert [trial["state"] for trial in trials(artifact)] == ["complete", "failed", "failed"]
    assert [trial["error"] for trial in trials(artifact)[1:]] == [
        "it took longer than its limit of 0.5 s",
        "ValueError: x is 0.800",
    ]
    assert (artifact.counts["trials"], artifact.counts["failed"]) == (3, 2)


def test_a_trials_time_is_within_that_of_its_job() -> None:
    def job() -> None:
        with _within(0.6):
            with limited(0.2), pytest.raises(TimeOverError):
                time.sleep(5)
            assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.5, "the job's goes on"
            with limited(60):
                time.sleep(5)

    with pytest.raises(TimeLimitError):
        job()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_search_in_which_every_trial_failed_tries_them_again(tmp_path: Path) -> None:
    values = {"x": {"kind": "choice", "values": [0.1, 0.5, 0.8]}}
    for _ in range(2):
        with pytest.raises(StageError, match=r"none of 3 trials came to an end: ValueError: x is 0\.100; .*run again"):
            searched(tmp_path, {"raises": 0.05}, space=values, searcher={"kind": "grid"})
    mended = searched(tmp_path, space=values, searcher={"kind": "grid"})
    assert [(trial["state"], trial["error"]) for trial in trials(mended)] == [("complete", None)] * 3
    assert sorted(begun(tmp_path)) == [1, 3, 3, 3], "of the same trials"


def test_a_full_disk_ends_the_search_which_then_goes_on(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with pytest.raises(StorageError, match="No space left"):
            searched(small, trials=40, searcher={"kind": "random"})
        told = [json.loads(file.read_text())["state"] for file in sorted(small.glob("stages/search/*/trials/0*.json"))]
        assert set(told[:-1]) == {"complete"}
        assert told[-1] in ("running", "complete"), "what a full disk did to a trial is not the trial's fault"
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        resumed = searched(small, trials=40, searcher={"kind": "random"})
        assert {trial["state"] for trial in trials(resumed)} == {"complete"}
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_asha_ends_trials_that_do_worse_at_a_rung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_by_one, "POLL_SECONDS", 0.01)
    values = {"x": {"kind": "choice", "values": [0.3, -1.0, 0.9, 0.31]}}
    scheduler = {"kind": "asha", "metric": "error", "factor": 2, "grace": 2}
    artifact = searched(
        tmp_path, {"steps": 8, "pause": 0.05}, space=values, searcher={"kind": "grid"}, scheduler=scheduler
    )
    states = {trial["values"]["x"]: trial["state"] for trial in trials(artifact)}
    assert (states[0.3], states[-1.0], states[0.9]) == ("complete", "pruned", "pruned")
    assert all(len(trial["curve"]) < 8 for trial in trials(artifact) if trial["state"] == "pruned")


def two_of_a_scheduler(root: Path) -> tuple[Asked, Journal, Callable[[], Asked]]:
    """Two trials under a scheduler, their record, and the same search gone on from it."""
    held = recipe(
        {"steps": 8}, space={"x": {"kind": "choice", "values": [0.3, -1.0]}}, searcher={"kind": "grid"},
        scheduler={"kind": "asha", "metric": "error", "factor": 2, "grace": 2},
    )  # fmt: skip
    search: Any = held.stages["search"]
    bench, journal = Bench.of(search, held, Run(root / "run")), Journal(Store.at(root / "trials"))

    def begin() -> Asked:
        return Asked(search, bench, journal, Study(search))

    return begin(), journal, begin


def test_what_the_scheduler_said_outlives_the_process_it_said_it_in(tmp_path: Path) -> None:
    """The search is lost between the scheduler's word and the trial's end."""
    asked, journal, resume = two_of_a_scheduler(tmp_path)
    good, poor = asked.next(), asked.next()
    assert good is not None
    assert poor is not None
    assert asked.report(good, [(2, {"error": 1.0})])
    assert not asked.report(poor, [(2, {"error": 3.0})])
    assert not asked.report(poor, [(2, {"error": 3.0}), (3, {"error": 0.1})]), "nor is it asked again"
    resumed = resume()
    again = resumed.next()
    assert again is not None
    assert (again.number, resumed.next()) == (good.number, None)
    assert [(trial.state, trial.reported) for trial in journal.read()] == [
        ("running", [[2, 1.0]]),
        ("pruned", [[2, 3.0]]),
    ]


def test_a_figure_that_is_no_number_ends_its_trial_alone(tmp_path: Path) -> None:
    """It has failed, also for a search that goes on from the record."""
    asked, journal, resume = two_of_a_scheduler(tmp_path)
    first, second = asked.next(), asked.next()
    assert first is not None
    assert second is not None
    assert not asked.report(first, [(1, {"error": 1.0}), (2, {"error": math.nan}), (3, {"error": 1.0})])
    asked.tell(first, Outcome(stopped=True))
    assert not asked.report(second, [(1, {"error": math.inf})])
    resumed = resume()
    assert resumed.next() is None, "the second was ended already"
    told = [(trial.state, trial.error, trial.reported) for trial in journal.read()]
    assert told == [("failed", "error is nan after step 2", [[1, 1.0]]), ("failed", "error is inf after step 1", [])]
    resumed.take_back()
    again = resume()
    assert [trial.number for trial in (again.next(), again.next()) if trial is not None] == [0, 1]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"space": {"y": {"kind": "uniform", "low": 0.0, "high": 1.0}}}, "space.y: 0.0 does not fit: unknown field"),
    (
        {"space": {"x": {"kind": "uniform", "low": 0.0, "high": 11.0}}},
        "space.x: 11.0 does not fit: .*less than or equal",
    ),
    ({"space": {"inner.width": {"kind": "integers", "low": 0, "high": 8}}}, "space.inner.width: 0 does not fit"),
    ({"space": {"stages.date.value": {"kind": "choice", "values": [1]}}}, "no stage 'date' leads.*mean \"data\""),
    ({"space": {"x": {"kind": "uniform", "low": 1.0, "high": 0.0}}}, "space.x.high: must be above low"),
    ({"space": {"x": {"kind": "choice", "values": [0.1, 0.1]}}}, "space.x.values: 0.1 stands twice"),
    ({"searcher": {"kind": "grid"}}, "space.x: has no points for a grid"),
    ({"searcher": {"kind": "bohb"}}, "searcher: needs HpBandSter.*{kind: hyperband, most: STEPS}"),
    (
        {
            "space": {
                "inner.shares": {"kind": "simplex", "names": ["a", "b"]},
                "stages.hill.inner.shares.a": {"kind": "uniform", "low": 0.0, "high": 1.0},
            }
        },
        "inner.shares.a: is a share of inner.shares, which would not sum to its total",
    ),
    ({"trials": None}, "trials: is missing"),
    ({"scheduler": {"kind": "pbt"}}, "scheduler: would go on from another trial's weights"),
    ({"scheduler": {"kind": "asha"}}, "@hill tells no validation_loss while it runs"),
    ({"space": {**LINE, "stages.hill.x": LINE["x"]}}, "space.stages.hill.x: leads to the same place as x"),
    ({"metric": "data/value"}, "data does not depend on @hill"),
    ({"metric": "nobody/seen"}, "no stage is named 'nobody'"),
    ({"metric": "test/seen"}, "refer to each other in a circle"),
    ({"stage": "hull"}, "no stage is named 'hull'"),
    ({"also": [{"metric": "look/seen"}]}, "look/seen is an objective twice"),
    ({"repeats": {"seeds": [1, 2]}}, "repeats.path: 1 does not fit: .*optimisation"),
    ({"repeats": {"seeds": [1, 0], "path": "seed"}}, "0 is a seed that the search itself runs with"),
    (
        {
            "space": {"stages.hill.seed": {"kind": "integers", "low": 2, "high": 4}},
            "repeats": {"seeds": [1, 3], "path": "seed"},
        },
        "3 is a seed that the search itself runs with",
    ),
    ({"repeats": {"seeds": [1, 1], "path": "seed"}}, "a seed stands there twice"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED, ids=[str(item[0])[:40] for item in REFUSED])
def test_what_does_not_fit_is_refused_before_anything_starts(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(**{"trials": 4, **settings})


def test_nothing_is_chosen_by_the_test_split() -> None:
    data = data_of(trials=4)
    data["stages"]["look"]["split"] = "test"
    with pytest.raises(RecipeError, match="look looks at the test split, by which nothing may be chosen"):
        load(data)


def sft(**space: Any) -> dict[str, Any]:
    """A search over a training stage, as it stands in a recipe; nothing of it is run."""
    source = {"kind": "inline", "rows": [{"text": "a", "label": "b"}]}
    stages = {
        "data": {"kind": "data", "row": "labelled", "source": source, "split": {"validation": 0.5}},
        "sft": {"kind": "sft", "data": "@data", "model": {"name": "org/model", "lora": {"rank": 8}},
                "validation": "validation"},
        "search": {"kind": "search", "stage": "sft", "metric": "validation_loss", "mode": "min", "space": space,
                   "searcher": {"kind": "grid"}},
    }  # fmt: skip
    return {"name": "training", "stages": stages}


EAGER = {"split": "test", "every_steps": 1}
EITHER = {"kind": "choice", "values": ["validation", "test"]}
RANKS = {"model.lora.rank": {"kind": "choice", "values": [4, 8]}}
CHOSEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "scheduler": (
        {"validation": EAGER}, {"metric": "look/seen", "scheduler": {"kind": "asha"}},
        "stage: sft is compared with other trials on the test split, by which nothing may be chosen",
    ),
    "weights": ({"validation": EAGER}, {"metric": "look/seen"}, "keeps the weights that are best on the test split"),
    "loss": ({"validation": "test"}, {}, "metric: sft looks at the test split"),
    "probe": (
        {"forgetting": {"probes": [{"data": "@data"}]}}, {"metric": "data_test perplexity change"},
        "metric: sft probes data_test on the test split",
    ),
    "a value": ({}, {"space": {"validation.split": EITHER}}, "validation.split: test does not fit: sft looks at the"),
    "a component": (
        {}, {"space": {"validation": {"kind": "choice", "values": [{"split": "validation"}, {"split": "test"}]}}},
        "space.validation: .*'test'.* does not fit: sft looks at the test split",
    ),
    "another stage's": (
        {}, {"metric": "look/seen", "space": {"stages.look.split": EITHER}},
        "stages.look.split: test does not fit: look looks at the test split",
    ),
    "a misspelt figure": ({}, {"metric": "validation_los"}, "measures no 'validation_los'; did you .*validation_loss"),
    "a loss": ({}, {"mode": "max"}, "mode: is max, by which the most validation_loss would win, .* use min"),
    "a cost": ({}, {"also": [{"metric": "sft/seconds"}]}, "also.0.mode: is max, by which the most seconds would win"),
    "time in a pack": (
        {}, {"also": [{"metric": "sft/seconds"}], "runner": {"kind": "packed"}},
        "also.0.metric: seconds of a trial in a pack is the time of all trials in it; set runner: {kind: one_by_one}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_nothing_is_chosen_by_test_rows_misspelt_figures_or_the_time_of_others(name: str) -> None:
    trained, settings, said = CHOSEN[name]
    data = sft(**RANKS)
    data["stages"]["look"] = {"kind": "searched:Look", "model": "@sft"}
    load(data)
    data["stages"]["sft"].update(trained)
    data["stages"]["search"].update(settings)
    with pytest.raises(RecipeError, match=said):
        load(data)


def test_which_rows_are_for_the_test_is_not_searched() -> None:
    data = sft(**RANKS)
    stages = data["stages"]
    stages["data"]["split"] = {"validation": 0.3, "test": 0.2}
    space, seeds = stages["search"]["space"], {"kind": "choice", "values": [0, 1]}
    for field, values in {"seed": [0, 1], "test": [0.2, 0.4], "stratify": [False, True]}.items():
        space[f"stages.data.split.{field}"] = {"kind": "choice", "values": values}
        with pytest.raises(RecipeError, match=rf"split\.{field}: .* does not fit: holds out other rows for the test"):
            load(data)
        del space[f"stages.data.split.{field}"]
    stages["search"]["repeats"] = {"seeds": [1, 2], "path": "stages.data.split.seed"}
    with pytest.raises(RecipeError, match=r"repeats\.path: 1 does not fit: holds out other rows for the test"):
        load(data)
    del stages["search"]["repeats"]
    space["stages.data.split.validation"] = {"kind": "uniform", "low": 0.1, "high": 0.3}
    stages["search"].update(searcher={"kind": "random"}, trials=2)
    load(data)
    stages["data"]["split"]["test"] = 0.0
    space["stages.data.split.seed"] = seeds
    load(data)


class Own(Sft):
    """A training stage of one's own, with a figure whose name is nearly that of one of ours."""


def test_figures_of_a_training_stage_of_ones_own_are_its_own() -> None:
    data = sft(**RANKS)
    data["stages"]["search"]["metric"] = "training_loss"
    with pytest.raises(RecipeError, match="measures no 'training_loss'"):
        load(data)
    data["stages"]["sft"]["kind"] = "test_search:Own"
    load(data)


def test_shares_are_of_tasks_that_there_are() -> None:
    weights = {"kind": "simplex", "names": ["cards", "rates"]}
    data = sft(**{"tasks.weighting.weights": weights})
    stages = data["stages"]
    stages["mixture"] = {"kind": "mix", "data": {"cards": "@data", "rates": "@other"}}
    stages["other"] = dict(stages["data"])
    stages["sft"].update(data="@mixture", tasks={"weighting": {"kind": "fixed", "weights": {"cards": 1.0}}})
    stages["search"]["searcher"], stages["search"]["trials"] = {"kind": "random"}, 2
    load(data)
    weights["names"] = ["cards", "rates"]
    split = {"validation": stages["other"]["source"], "test": stages["other"]["source"]}
    stages["other"] = {"kind": "data", "row": "labelled", "sources": split}
    with pytest.raises(RecipeError, match="does not fit: no task is called 'rates'"):
        load(data)
    stages["other"]["sources"]["train"] = split["test"]
    load(data)
    weights["names"] = ["card", "rates"]
    with pytest.raises(RecipeError, match="does not fit: no task is called 'card'; did you mean \"cards\""):
        load(data)


def test_a_field_of_a_kind_is_searched_only_where_that_kind_is() -> None:
    ranks, lengths = {"kind": "choice", "values": [4, 8]}, {"kind": "integers", "low": 5, "high": 15, "step": 5}
    kinds = {"kind": "choice", "values": ["lora", "prefix_tuning"]}
    space = {"model.lora.rank": ranks, "model.prefix_tuning.length": lengths, "model.peft.kind": kinds}
    held = load(sft(**space))
    search: Any = held.stages["search"]
    assert search.count(held) == 2 + 3, "ranks of one kind and lengths of the other, not their product"
    with pytest.raises(RecipeError, match=r"prefix_tuning.length: is never there"):
        load(sft(**{"model.prefix_tuning.length": lengths}))
    with pytest.raises(RecipeError, match=r"model.lora.rank: 0 does not fit"):
        load(sft(**{**space, "model.lora.rank": {"kind": "choice", "values": [4, 0]}}))
    with pytest.raises(RecipeError, match=r"model.peft.kind: ia4 does not fit: .*no peft of kind 'ia4'"):
        load(sft(**{"model.peft.kind": {"kind": "choice", "values": ["lora", "ia4"]}}))


def test_a_value_applies_however_its_path_is_written() -> None:
    held = load(sft(**{"model.lora.rank": {"kind": "choice", "values": [4, 8]}}))
    for outer, inner, expected in (
        ({"stages.sft.model.peft": {"kind": "lora", "dropout": 0.5}}, {"model.lora.rank": 16}, 16),
        ({"model.peft": {"kind": "lora", "dropout": 0.5}}, {"stages.sft.model.lora.rank": 16}, 16),
        ({"stages.sft.model.peft.kind": "prefix_tuning"}, {"model.prefix_tuning.length": 7}, 7),
    ):
        stage: Any = changed(held, "sft", {**inner, **outer}).stages["sft"]
        peft = stage.model.peft
        assert getattr(peft, "length" if peft.kind == "prefix_tuning" else "rank") == expected
    ranks = {"kind": "choice", "values": [4, 8]}
    with pytest.raises(RecipeError, match=r"model.peft.rank: leads to the same place as model.lora.rank"):
        load(sft(**{"model.lora.rank": ranks, "model.peft.rank": ranks}))


@pytest.mark.parametrize("path", ["model.lora.rank", "model.peft.rank"])
def test_a_field_is_not_searched_in_a_component_that_null_is_chosen_for(path: str) -> None:
    space = {
        "model.peft": {"kind": "choice", "values": [None, {"kind": "lora"}]},
        path: {"kind": "choice", "values": [4, 16]},
    }
    held = load(sft(**space))
    search: Any = held.stages["search"]
    points = grid(held, "sft", search.space)
    assert [point.get(path) for point in points] == [None, 4, 16]
    stages: list[Any] = [changed(held, "sft", point).stages["sft"] for point in points]
    assert [stage.model.peft and stage.model.peft.rank for stage in stages] == [None, 4, 16]


def test_a_field_that_nobody_has_written_is_searched() -> None:
    held = load(sft(**{"optimisation.averaging.decay": {"kind": "choice", "values": [0.9, 0.99]}}))
    stage: Any = changed(held, "sft", {"optimisation.averaging.decay": 0.9}).stages["sft"]
    assert stage.optimisation.averaging.decay == 0.9


def test_a_seed_of_the_repeats_takes_the_place_of_one_that_was_searched(tmp_path: Path) -> None:
    artifact = searched(
        tmp_path, {"noise": 0.3}, space={"stages.hill.seed": {"kind": "choice", "values": [5, 6]}},
        searcher={"kind": "grid"}, repeats={"seeds": [0, 1, 2], "path": "seed", "finalists": 1},
    )  # fmt: skip
    written, finalist = artifact.detail["search"]["finalists"]
    assert finalist["seeds"] == written["seeds"], "beside the seed nothing was searched"
    asked = [json.loads(file.read_text())["values"] for file in tmp_path.glob("stages/search/*/repeats/*.json")]
    assert sorted(asked, key=str) == [{"seed": seed} for seed in (0, 0, 1, 1, 2, 2)]


def test_plan_counts_trials_and_repeats(tmp_path: Path) -> None:
    repeats = {"seeds": [1, 2, 3], "path": "seed", "finalists": 2}
    held = recipe(space=GRID, searcher={"kind": "grid"}, repeats=repeats)
    (row,) = (row for row in plan(held, tmp_path) if row["stage"] == "search")
    assert row["estimate"]["trials"] == 12 + 3 * (2 + 1), "three seeds of two finalists and of the recipe as written"


class Uniform01:
    """Draws as Optuna would, by Python's own generator."""

    def __init__(self) -> None:
        self.random = random.Random(0)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self.random.uniform(low, high)


def test_shares_are_uniform_on_the_simplex() -> None:
    space = Simplex.model_validate({"names": ["a", "b", "c"], "least": 0.0})
    drawn: Any = Uniform01()
    shares = [space.draw("weights", drawn) for _ in range(4000)]
    assert all(sum(each.values()) == pytest.approx(1, abs=1e-5) for each in shares)
    for name in "abc":
        # under Dirichlet(1, 1, 1) a share is Beta(1, 2)
        assert stats.kstest([each[name] for each in shares], stats.beta(1, 2).cdf).pvalue > 1e-3
    corners = Simplex.model_validate({"names": ["a", "b"], "total": 2.0, "least": 0.25}).corners()
    assert corners == [{"a": 1.5, "b": 0.5}, {"a": 0.5, "b": 1.5}]


def test_the_front_holds_what_nothing_beats_in_every_objective() -> None:
    objectives = [Objective(metric="good"), Objective(metric="cost", mode="min")]
    drawn = random.Random(1)
    scores = [{"good": drawn.randint(0, 9), "cost": drawn.randint(0, 9)} for _ in range(40)]

    def beats(one: dict[str, int], other: dict[str, int]) -> bool:
        return one != other and one["good"] >= other["good"] and one["cost"] <= other["cost"]

    expected = [place for place, each in enumerate(scores) if not any(beats(one, each) for one in scores)]
    assert front(scores, objectives) == expected


def candidate(number: int | None, *figures: float) -> Candidate:
    return Candidate(number, {}, {"f1": figures[0]}, {}, dict(enumerate(figures)))


def test_a_lead_is_told_from_luck_by_a_paired_t_test() -> None:
    f1 = Objective(metric="f1")
    ahead, behind, noisy = (
        candidate(3, 0.90, 0.92, 0.91),
        candidate(None, 0.80, 0.83, 0.80),
        candidate(1, 0.7, 0.99, 0.9),
    )
    reference = stats.ttest_rel([0.90, 0.92, 0.91], [0.80, 0.83, 0.80]).confidence_interval(0.95)
    found = lead(ahead, behind, 1)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert winner([behind, ahead, noisy], f1) is ahead
    first, second = verdicts(ahead, [behind, noisy], f1)
    assert first.startswith("trial 3 beats the recipe as written in f1")
    assert second.startswith("trial 3 does not beat trial 1 beyond noise in f1")
    assert estimate([1.0, 1.0]).low == 1.0


def test_a_finalist_that_fails_with_most_seeds_does_not_win_on_a_lucky_one() -> None:
    f1 = Objective(metric="f1")
    written, steady, lucky = candidate(None, 0.8, 0.82, 0.81), candidate(3, 0.9, 0.91, 0.89), candidate(1, 0.95)
    assert winner([written, lucky, steady], f1) is steady
    assert winner([lucky, candidate(None, 0.8)], f1) is lucky, "as many seeds"
    unrepeated = Candidate(2, {}, {"f1": 0.99}, {})
    assert winner([unrepeated, written], f1) is written
    (said,) = verdicts(steady, [lucky], f1)
    assert said.startswith("trial 3 is 0.05 worse in f1 than trial 1, in one run of each")
    assert "trial 3 finished with 3 seeds, trial 1 with 1" in said
    assert "without repeats" not in said
    (partly,) = verdicts(steady, [candidate(1, 0.8, 0.81)], f1)
    assert partly.endswith("over 2 seeds"), "those that both finished with"


def test_repeats_take_the_winner_by_seeds_that_the_search_did_not_see(tmp_path: Path) -> None:
    repeats = {"seeds": [1, 2, 3], "path": "seed"}
    artifact = searched(tmp_path, {"noise": 0.3}, trials=6, searcher={"kind": "random"}, repeats=repeats)
    found = artifact.detail["search"]["finalists"]
    ranked = sorted(trials(artifact), key=lambda trial: -trial["scores"]["look/seen"])
    assert [item["number"] for item in found] == [None, *(trial["number"] for trial in ranked[:2])]
    best = max(found, key=lambda item: sum(item["seeds"].values()))
    assert (artifact.detail["search"]["best"], artifact.metrics["best/look/seen"]) == (best["number"], best["value"])
    assert artifact.metrics["height"] == pytest.approx(best["seeds"]["1"] / 10), "what is left is the first seed's"


def test_what_is_told_of_the_winner_is_what_it_won_by_where_one_seed_finished(tmp_path: Path) -> None:
    hill = {"kind": "searched:Frail", "noise": 0.3}
    repeats = {"seeds": [1, 2], "path": "seed"}
    artifact = searched(tmp_path, hill, trials=4, searcher={"kind": "random"}, repeats=repeats)
    found = artifact.detail["search"]["finalists"]
    assert [list(item["seeds"]) for item in found] == [["1"]] * 3
    best = max(found, key=lambda item: item["value"])
    assert artifact.detail["search"]["best"] == best["number"]
    assert artifact.metrics["best/look/seen"] == best["value"] == pytest.approx(10 * artifact.metrics["height"])
    assert artifact.metrics["written/look/seen"] == found[0]["value"]


def test_trials_behind_one_whose_record_is_gone_are_asked_again(tmp_path: Path) -> None:
    settings = {"trials": 6, "searcher": {"kind": "tpe", "startup": 2}}
    before = trials(searched(tmp_path, **settings))
    (folder,) = tmp_path.glob("stages/search/*")
    for name in ("artifact.json", "trials/00002.json"):
        (folder / name).unlink()
    again = trials(searched(tmp_path, **settings))
    assert [(trial["number"], trial["values"]) for trial in again] == [
        (trial["number"], trial["values"]) for trial in before
    ]
    assert sorted(begun(tmp_path)) == [1] * 7


def test_of_two_trials_with_the_same_values_one_is_a_candidate() -> None:
    made = [Trial(number, {}, state="complete", scores={"f1": 0.5}, made={"sft": "same"}) for number in range(2)]
    assert [trial.number for trial in best_first(made, Objective(metric="f1"))] == [0]


def test_several_objectives_and_the_report(tmp_path: Path) -> None:
    also = [{"metric": "hill/parameters.trainable", "mode": "min"}]
    space = {**LINE, "inner.width": {"kind": "integers", "low": 1, "high": 16},
             "inner.shares": {"kind": "simplex", "names": ["a", "b"]}}  # fmt: skip
    artifact = searched(
        tmp_path, {"steps": 3}, space=space, trials=10, also=also, repeats={"seeds": [1, 2], "path": "seed"}
    )
    told = trials(artifact)
    assert all(trial["scores"]["hill/parameters.trainable"] == trial["values"]["inner.width"] for trial in told)
    assert 0 < sum(trial["front"] for trial in told) < 10
    assert len(list(artifact.store.local("tensorboard").glob("trial-*"))) == 10
    page = Path(write_report(Run(tmp_path)).removeprefix("file://")).read_text()
    for words in ("Search: search", "Pareto front", "Finalists", "What explains look/seen", "Every trial", "by step"):
        assert words in page


def test_what_can_share_a_pack_does_and_scores_as_it_would_alone(tmp_path: Path) -> None:
    hill = {"kind": "searched:Range", "steps": 3, "raises": 0.4}
    space = {"x": {"kind": "choice", "values": list(XS)}, "inner.width": {"kind": "choice", "values": [2, 8]}}
    grid = {"space": space, "searcher": {"kind": "grid"}}
    alone = trials(searched(tmp_path / "alone", hill, **grid))
    packed = trials(searched(tmp_path / "packed", hill, **grid, runner={"kind": "packed", "places": 2}))
    same = ("number", "values", "scores", "state", "error")
    assert [[trial[key] for key in same] for trial in packed] == [[trial[key] for key in same] for trial in alone]
    assert [trial["state"] for trial in packed].count("failed") == 2
    company = [json.loads(file.read_text()) for file in tmp_path.glob("packed/stages/hill/*/company.json")]
    assert company.count(2) >= 3, "trials ran two at a time"


@pytest.mark.parametrize("kind", ["Crowded", "Full"])
def test_a_pack_that_ends_before_it_holds_its_trials_loses_none(tmp_path: Path, kind: str) -> None:
    grid = {"space": {"x": {"kind": "choice", "values": list(XS)}}, "searcher": {"kind": "grid"}}
    packed = {"runner": {"kind": "packed", "places": 4}, "repeats": {"seeds": [1, 2], "path": "seed"}}
    artifact = searched(tmp_path, {"kind": f"searched:{kind}", "steps": 2}, **grid, **packed)
    assert [trial["state"] for trial in trials(artifact)] == ["complete"] * 4
    assert [sorted(item["seeds"]) for item in artifact.detail["search"]["finalists"]] == [["1", "2"]] * 3


def xs(*values: float) -> dict[str, Any]:
    """A search over these, in a pack."""
    space = {"x": {"kind": "choice", "values": list(values)}}
    return {"space": space, "searcher": {"kind": "grid"}, "runner": {"kind": "packed", "places": 4}}


def test_a_trial_that_turns_out_to_share_no_pass_is_run_by_itself(tmp_path: Path) -> None:
    hill = {"kind": "searched:Loose", "steps": 2, "raises": 0.4}
    told = trials(searched(tmp_path, hill, **xs(*XS)))
    assert [trial["error"] for trial in told] == [None, None, None, "ValueError: x is 0.500"], "its own fault, alone"


@pytest.mark.parametrize("kind", ["Cramped", "Narrow"])
def test_packs_are_as_large_as_memory_allows(tmp_path: Path, kind: str) -> None:
    told = trials(searched(tmp_path, {"kind": f"searched:{kind}", "steps": 2}, **xs(*XS, 0.1, 0.2)))
    assert [trial["state"] for trial in told] == ["complete"] * 6
    company = [json.loads(file.read_text()) for file in tmp_path.glob("stages/hill/*/company.json")]
    assert (len(company), max(company)) == (5, 2), "one is the recipe as written"


@pytest.mark.parametrize("kind", ["Stuck", "Stalled"])
def test_a_pass_that_hangs_is_ended_and_who_hangs_alone_has_failed(tmp_path: Path, kind: str) -> None:
    hill = {"kind": f"searched:{kind}", "steps": 2, "hangs": 0.4}
    told = trials(searched(tmp_path, hill, **xs(0.1, 0.5, 0.2), limit=3))
    assert [trial["error"] for trial in told] == [None, "it took longer than its limit of 3 s", None]


def test_the_limit_holds_before_a_pack_and_behind_it(tmp_path: Path) -> None:
    data = data_of({"kind": "searched:Range", "steps": 2, "x": -1.0}, **xs(0.1, -0.5, 0.2), limit=3)
    data["stages"]["look"]["hangs"] = 0.5
    told = trials(Run(tmp_path / "behind").execute(load(data))["search"])
    late = "it took longer than its limit of 3 s"
    assert [trial["error"] for trial in told] == [late, None, late]
    data = data_of({"kind": "searched:Range", "steps": 2}, **xs(0.1), limit=3)
    data["stages"]["data"]["kind"] = "searched:Lazy"
    data["stages"]["search"]["space"]["stages.data.value"] = {"kind": "choice", "values": [1, 2, 3]}
    told = trials(Run(tmp_path / "before").execute(load(data))["search"])
    assert [trial["error"] for trial in told] == [None, None, late]


def test_what_is_done_for_one_trial_is_no_time_of_the_others(tmp_path: Path) -> None:
    data = data_of({"kind": "searched:Range", "steps": 2}, **xs(0.1, -0.5, 0.2, 0.3), limit=4)
    data["stages"]["look"]["takes"] = 1.2
    told = trials(Run(tmp_path).execute(load(data))["search"])
    assert [trial["error"] for trial in told] == [None] * 4


def test_each_trial_pays_for_its_own_set_up_alone(tmp_path: Path) -> None:
    told = trials(searched(tmp_path, {"kind": "searched:Slow", "steps": 2}, **xs(0.1, -0.5, 0.2, 0.3), limit=3))
    assert [trial["error"] for trial in told] == [None] * 4


def test_a_stage_in_a_pack_took_its_own_seconds(tmp_path: Path) -> None:
    data = data_of({"kind": "searched:Range", "steps": 2}, **xs(0.1, 0.2))
    data["stages"]["data"]["kind"] = "searched:Tardy"
    data["stages"]["search"]["space"]["stages.data.value"] = {"kind": "choice", "values": [2, 3]}
    assert [trial["error"] for trial in trials(Run(tmp_path).execute(load(data))["search"])] == [None] * 4
    seconds = [json.loads(file.read_text())["seconds"] for file in tmp_path.glob("stages/hill/*/artifact.json")]
    assert len(seconds) == 5
    assert max(seconds) < 1.5, seconds


def test_twins_of_a_pack_are_trained_once_and_what_is_damaged_is_trained_anew(tmp_path: Path) -> None:
    hill = {"kind": "searched:Range", "steps": 3}
    space = {"x": {"kind": "choice", "values": [0.1]}, "inner.width": {"kind": "choice", "values": [2]}}
    settings = {"space": space, "searcher": {"kind": "random"}, "runner": {"kind": "packed", "places": 2}}
    told = trials(searched(tmp_path, hill, trials=3, **settings))
    assert begun(tmp_path) == [1, 1], "the recipe as written, and one trial for all"
    assert [trial["state"] for trial in told] == ["complete"] * 3
    assert len({json.dumps(trial["scores"]) for trial in told}) == 1
    lost = list(tmp_path.glob("stages/hill/*/weights"))
    for file in lost:
        file.unlink()
    again = trials(searched(tmp_path, hill, trials=4, **settings))
    assert lost
    assert all(file.exists() for file in lost)
    assert [trial["scores"] for trial in again] == [told[0]["scores"]] * 4


def test_a_trial_that_is_ended_leaves_its_place_in_the_pack(tmp_path: Path) -> None:
    space = {"x": {"kind": "choice", "values": [0.3, -1.0, 0.9, -0.8, 0.28]}}
    artifact = searched(
        tmp_path,
        {"kind": "searched:Range", "steps": 6},
        space=space,
        searcher={"kind": "grid"},
        scheduler={"kind": "asha", "factor": 2, "grace": 2, "metric": "validation_loss"},
        runner={"kind": "packed", "places": 2},
    )
    states = [trial["state"] for trial in trials(artifact)]
    assert (states[0], states[1:4]) == ("complete", ["pruned"] * 3)
    assert [len(trial["curve"]) for trial in trials(artifact)[1:4]] == [2, 2, 2], "each at the first rung"


@pytest.mark.parametrize(
    "scheduler",
    [
        {"kind": "median", "startup": 1, "grace": 1},
        {"kind": "hyperband", "grace": 1, "most": 6, "factor": 2},
        {"kind": "asha", "grace": 4, "factor": 2},
    ],
    ids=lambda item: str(item["kind"]),
)
def test_schedulers_end_what_is_worse_and_nothing_that_is_trained(tmp_path: Path, scheduler: dict[str, Any]) -> None:
    values = [0.3, 0.31, -1.0, -0.9, -0.8, -0.7, 0.3001, -0.95]
    artifact = searched(
        tmp_path,
        {"kind": "searched:Range", "steps": 4 if scheduler["kind"] == "asha" else 6},
        space={"x": {"kind": "choice", "values": values}},
        searcher={"kind": "grid"},
        scheduler=scheduler,
        runner={"kind": "packed", "places": 2},
    )
    told = trials(artifact)
    states = dict(zip(values, [trial["state"] for trial in told], strict=True))
    if scheduler["kind"] == "asha":  # its only rung is the last step: there all of them are trained
        assert set(states.values()) == {"complete"}
        return
    assert states[0.3] == states[0.31] == "complete"
    ended = [value for value, state in states.items() if state == "pruned"]
    assert len(ended) >= 2
    assert all(value < 0 for value in ended)
    assert all(1 <= len(trial["curve"]) < 6 for trial in told if trial["state"] == "pruned")
    assert len(list(artifact.store.local("tensorboard").glob("trial-*"))) == len(values)


def test_an_axis_of_numbers_that_some_trials_lack_is_in_their_order() -> None:
    """The line of a trial of another kind passes below the numbers, which would be names beside it: 16 before 4."""
    heights, ticks = scaled([16, None, 4, 8])
    assert sorted(zip(heights, [16, 0, 4, 8], strict=True)) == [
        (h, n) for h, n in zip(sorted(heights), [0, 4, 8, 16], strict=True)
    ]
    assert ticks[0] == (0.0, "–")
    assert [text for _, text in ticks[1:]] == ["4", "8", "16"]
    assert scaled([16, 4, 8])[0] == [1.0, 0.0, pytest.approx(1 / 3)]
