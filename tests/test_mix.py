"""Mixing tasks: every row once under its task, shares by caps and weights, held-out tasks never trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import tilth
from helpers import final
from tilth.data.dataset import Dataset
from tilth.data.mix import Mix
from tilth.errors import RecipeError, StageError

SIZES = {"big": 120, "small": 40, "tiny": 10}
HERE = {"workers": 0}


def source(folder: Path, name: str, rows: int) -> dict[str, Any]:
    """Rows with ids that every task uses alike."""
    file = folder / f"{name}.jsonl"
    lines = [{"id": f"r{n:03d}", "prompt": f"{name} question {n}", "completion": str(n)} for n in range(rows)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return {"kind": "jsonl", "path": str(file), "columns": {"id": "id"}}


def recipe(folder: Path, sizes: dict[str, int] = SIZES, test: float = 0.2, **mix: Any) -> dict[str, Any]:
    stages: dict[str, Any] = {}
    for name, rows in sizes.items():
        stages[name] = {"kind": "data", "row": "completion", "source": source(folder, name, rows), "resources": HERE}
        stages[name]["split"] = {"test": test}
    mixed = {"kind": "mix", "data": {name: f"@{name}" for name in sizes}, "resources": HERE}
    return {"name": "mixed", "stages": {**stages, "mixed": {**mixed, **mix}}}


def run(folder: Path, **fields: Any) -> tuple[Any, Dataset]:
    folder.mkdir(exist_ok=True)
    artifact = tilth.run(recipe(folder, **fields), folder / "out")["mixed"]
    return artifact, Dataset.open(artifact)


def by_task(done: Dataset) -> Counter[tuple[str, str]]:
    return Counter((row["task"], row["split"]) for row in done.rows())


def test_every_row_is_there_once_under_its_task(tmp_path):
    artifact, done = run(tmp_path)
    rows = list(done.rows())
    assert len(rows) == len({row["id"] for row in rows}) == 170
    for row in rows:
        assert row["id"] == row["root"] == f"{row['task']}/r{int(row['completion']):03d}"
        assert row["prompt"].startswith(row["task"])
    assert done.counts["inputs"] == done.counts["accepted"] == 170
    assert artifact.detail["tasks"]["tiny"] == {
        split: count for (task, split), count in by_task(done).items() if task == "tiny"
    }


def test_a_cap_limits_training_and_evaluation_stays_whole(tmp_path):
    whole = by_task(run(tmp_path / "whole")[1])
    artifact, done = run(tmp_path / "capped", cap=25)
    capped = by_task(done)
    assert capped["big", "train"] == capped["small", "train"] == 25
    assert capped["tiny", "train"] == whole["tiny", "train"]
    assert all(capped[task, "test"] == whole[task, "test"] for task in SIZES)
    reasons = {row["reason"] for row in done.rejected_rows()}
    assert reasons == {"not_sampled: over 25 training rows of its task"}
    assert artifact.metrics["train/big"] == 25
    assert done.counts["inputs"] == done.counts["accepted"] + done.counts["filtered"] == 170


def test_a_larger_mixture_contains_the_smaller_one(tmp_path):
    small = {row["id"] for row in run(tmp_path / "small", rows=30)[1].split("train").rows()}
    large = {row["id"] for row in run(tmp_path / "large", rows=60)[1].split("train").rows()}
    other = {row["id"] for row in run(tmp_path / "other", rows=30, seed=1)[1].split("train").rows()}
    assert 27 <= len(small) <= 30
    assert small < large
    assert small != other


def test_a_mixture_of_fewer_rows_than_any_task_gets_one_of_is_refused(tmp_path):
    with pytest.raises(StageError, match=r"rows=1 shared over 3 tasks .* leaves none of them a row"):
        run(tmp_path, rows=1)


def test_weights_share_out_and_caps_of_ones_own_go_first():
    stage = Mix(data={name: f"@{name}" for name in SIZES}, cap=100, caps={"small": 20}, weights={"big": 0.5})
    assert stage.quotas(SIZES) == {"big": 50, "small": 20, "tiny": 10}
    heavier = Mix(data={name: f"@{name}" for name in SIZES}, weights={"tiny": 2.0})
    assert heavier.quotas(SIZES) == {"big": 60, "small": 20, "tiny": 10}


tasks = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5000), min_size=1)


@settings(max_examples=200)
@given(available=tasks, cap=st.none() | st.integers(1, 3000), rows=st.none() | st.integers(1, 4000), data=st.data())
def test_no_task_gives_more_than_it_has_or_may(available, cap, rows, data):
    weights = {task: data.draw(st.floats(0.01, 100)) for task in available if data.draw(st.booleans())}
    stage = Mix(data={task: f"@{task}" for task in available}, cap=cap, rows=rows, weights=weights)
    taken = stage.quotas(available)
    assert taken.keys() == available.keys()
    assert all(0 <= taken[task] <= min(available[task], cap or available[task]) for task in available)
    assert sum(taken.values()) <= (rows or sum(available.values()))
    heaviest = max(available, key=lambda task: weights.get(task, 1.0))
    if rows is None:
        assert taken[heaviest] == min(available[heaviest], cap or available[heaviest])


def test_held_out_tasks_are_evaluated_and_never_trained_on(tmp_path):
    whole = by_task(run(tmp_path / "whole")[1])
    _, done = run(tmp_path / "held", held_out={"sentiment": ["small"]})
    found = by_task(done)
    assert found["small", "train"] == 0
    assert found["small", "test"] == whole["small", "test"] > 0
    assert found["big", "train"] == whole["big", "train"]
    dropped = list(done.rejected_rows())
    assert len(dropped) == whole["small", "train"]
    assert {row["reason"] for row in dropped} == {"held_out: cluster sentiment is for evaluation, this row is of train"}


def test_all_rows_of_a_held_out_task_may_be_evaluated(tmp_path):
    _, done = run(tmp_path, held_out={"a": ["small"], "b": ["small"]}, held_out_rows="all", test=0.0)
    rows = [row for row in done.rows() if row["task"] == "small"]
    assert len(rows) == 40
    assert {row["split"] for row in rows} == {"test"}
    assert {row["meta"]["held_out_from"] for row in rows} == {"train"}


def test_a_held_out_task_without_test_rows_is_refused(tmp_path):
    with pytest.raises(StageError, match="small has no test rows; set held_out_rows=all"):
        run(tmp_path, held_out={"a": ["small"]}, test=0.0)


def test_what_was_made_keeps_its_origin_and_variants_stay_together(tmp_path):
    rows = [{"text": f"The customer of row {n} said that he lost his card."} for n in range(40)]
    stages = {
        "data": {"kind": "data", "row": "text", "source": {"kind": "inline", "rows": rows}, "resources": HERE},
        "swapped": {"kind": "augment", "data": "@data", "steps": [{"kind": "counterfactual"}], "resources": HERE},
        "mixed": {"kind": "mix", "data": {"bank": "@swapped"}, "cap": 30, "resources": HERE},
    }
    done = Dataset.open(tilth.run({"name": "made", "stages": stages}, tmp_path)["mixed"])
    found = {row["id"]: row for row in done.rows()}
    assert len(found) == 30
    children = [row for row in found.values() if row["parent"]]
    assert len(children) == 15
    for child in children:
        assert child["via"] == "counterfactual"
        assert child["parent"] == child["root"] in found, "parent and child are taken together"


def written(*given: tuple[str, str, str], **more: Any) -> dict[str, Any]:
    """A data stage of labelled rows by split: (split, text, label)."""
    sources = {
        split: {
            "kind": "inline",
            "rows": [{"text": text, "label": label} for own, text, label in given if own == split],
        }
        for split in dict.fromkeys(own for own, *_ in given)
    }
    return {"kind": "data", "row": "labelled", "sources": sources, "resources": HERE, **more}


def test_what_is_held_out_of_one_task_is_not_trained_on_in_another(tmp_path):
    topic = written(
        ("train", "of both", "bank"), ("train", "his card", "bank"), ("validation", "to validate", "x"),
        ("test", "to test", "bank"), ("test", "he is tested", "bank"),
    )  # fmt: skip
    tone = written(
        ("train", "to test", "good"), ("train", "he is tested", "bad"), ("train", "to validate", "good"),
        ("train", "of both", "good"), ("validation", "to test", "good"), ("test", "he is tested", "bad"),
        clean={"duplicates": "keep"},
    )  # fmt: skip
    stages = {
        "topic": topic, "tone": tone,
        "swapped": {"kind": "augment", "data": "@tone", "steps": [{"kind": "counterfactual"}], "resources": HERE},
        "mixed": {"kind": "mix", "data": {"a": "@swapped", "b": "@topic"}, "cap": 1, "resources": HERE},
    }  # fmt: skip
    done = Dataset.open(tilth.run({"name": "leaks", "stages": stages}, tmp_path)["mixed"])
    texts = {split: {row["text"] for row in done.split(split).rows()} for split in ("train", "validation", "test")}
    assert not texts["train"] & (texts["validation"] | texts["test"])
    assert not texts["validation"] & texts["test"]
    kept = [(row["task"], row["text"]) for row in done.split("train").rows()]
    assert ("a", "of both") in kept, "the cap is of what may be trained on"
    held = {
        (row["task"], row["text"]): row["id"] for split in ("test", "validation") for row in done.split(split).rows()
    }
    assert len(held) == 4
    assert sum(row["split"] == "test" for row in done.rows()) == 3
    why = {(row["split"], row["text"]): row["reason"] for row in done.rejected_rows() if row["task"] == "a"}
    assert why == {
        ("train", "to test"): f"duplicate: of {held['b', 'to test']} (test)",
        ("validation", "to test"): f"duplicate: of {held['b', 'to test']} (test)",
        ("train", "to validate"): f"duplicate: of {held['b', 'to validate']} (validation)",
        ("train", "he is tested"): f"duplicate: of {held['a', 'he is tested']} (test)",
        ("train", "she is tested"): f"duplicate: its original is one of {held['a', 'he is tested']} (test)",
    }
    assert done.counts["inputs"] == done.counts["accepted"] + done.counts["filtered"]


def problems(folder: Path, **mix: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        tilth.load(recipe(folder, **mix))
    return str(caught.value)


def test_faults_are_found_before_anything_runs(tmp_path):
    assert "no task is called 'smal'" in problems(tmp_path, held_out={"a": ["smal"]})
    assert "no task is called 'other'" in problems(tmp_path, weights={"other": 1.0})
    assert "must be above 0, not -1" in problems(tmp_path, weights={"big": -1.0})
    assert "must be 1 or more, not 0" in problems(tmp_path, caps={"big": 0})
    assert "nothing is left to train on" in problems(tmp_path, held_out={"a": list(SIZES)})
    assert "is the dataset of another task too" in problems(tmp_path, data={"a": "@big", "b": "@big"})


def test_rows_of_several_types_cannot_be_mixed(tmp_path):
    made = recipe(tmp_path)
    made["stages"]["tiny"]["row"] = "text"
    made["stages"]["tiny"]["source"]["columns"] = {"text": "prompt"}
    with pytest.raises(StageError, match="of one type, but there are: big completion, small completion, tiny text"):
        tilth.run(made, tmp_path / "out")


@pytest.mark.slow
def test_killed_at_any_durable_write_it_ends_with_the_same_rows(tmp_path):
    """Every eighth of the points at which a run can be killed."""
    file = tmp_path / "recipe.yaml"
    sizes = {"big": 60, "small": 20}
    file.write_text(yaml.safe_dump(recipe(tmp_path, sizes=sizes, cap=20)), encoding="utf-8")
    script = Path(__file__).with_name("run_and_die.py")
    done = subprocess.run([sys.executable, script, file, tmp_path / "runs", "8"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = final(tmp_path / "runs/whole")
    others = [folder for folder in (tmp_path / "runs").iterdir() if folder.is_dir() and folder.name != "whole"]
    assert len(others) > 3
    assert all(final(folder) == whole for folder in others)


def test_flan_and_t0_tasks_with_a_held_out_cluster(shared, tmp_path):
    """Real tasks: topic and paraphrase are learnt, sentiment is evaluated."""
    files = {
        "ag_news": "ag_news_classify",
        "paws": "paws_labeled_final_Rewrite",
        "imdb": "imdb_Movie_Expressed_Sentiment",
        "rotten": "rotten_tomatoes_Movie_Expressed_Sentiment_2",
    }
    stages: dict[str, Any] = {
        task: {
            "kind": "data", "row": "completion", "resources": HERE,
            "source": {"kind": "jsonl", "path": str(shared / f"data/flan-t0/{name}.jsonl")},
        }
        for task, name in files.items()
    }  # fmt: skip
    held = {"held_out": {"sentiment": ["imdb", "rotten"]}, "held_out_rows": "all"}
    stages["mixed"] = {"kind": "mix", "data": {task: f"@{task}" for task in files}, "cap": 150, **held}
    done = Dataset.open(tilth.run({"name": "t0", "stages": stages}, tmp_path)["mixed"])
    found = by_task(done)
    assert (found["ag_news", "train"], found["paws", "train"]) == (150, 150)
    assert {task for task, split in found if split == "test"} == {"imdb", "rotten"}
    assert found["imdb", "test"] + found["rotten", "test"] > 390
