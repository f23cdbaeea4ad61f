"""lm-evaluation-harness on models of ours, and our own ranking of choices against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import tilth
from tilth.data.loading import Card, load_pretrained
from tilth.errors import RecipeError, StageError
from tiny import model_folder

pytest.importorskip("lm_eval")
CHOICES = ["blue", "a deep shade of green", "red", "yellowish"]


def questions(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What colour is thing {i}?", "choices": CHOICES, "gold": i % 4} for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, a task of multiple choice as the harness reads it, and its rows."""
    root = tmp_path_factory.mktemp("harness")
    for seed, name in enumerate(("one", "two")):
        model_folder(root / name, "llama")
        torch.manual_seed(seed)
        model = load_pretrained(root / name, "language_model").model
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(root / name)
        Card(max_length=200).write(root / name)
    lines = "".join(json.dumps(row) + "\n" for row in questions(24))
    (root / "rows.jsonl").write_text(lines, encoding="utf-8")
    task = {
        "task": "colours", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(root / "rows.jsonl")}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{question}}", "target_delimiter": " ",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    (root / "tasks").mkdir()
    (root / "tasks/colours.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return root


def recipe(folder: Path, **fields: Any) -> dict[str, Any]:
    models = {name: str(folder / name) for name in ("one", "two")}
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl"), "columns": {"text": "question"}}
    here = {"bootstrap": {"samples": 100}, "resources": {"workers": 0}, "models": models}
    ours = {
        "kind": "evaluate", "data": "@data", **here,
        "task": {"kind": "choices", "prompt": "{{ text }}", "choices": "meta.choices", "reference": "meta.gold"},
    }  # fmt: skip
    asked = {"kind": "harness", "tasks": ["colours"], "include": str(folder / "tasks/*.yaml"), "baseline": "one"}
    return {
        "name": "harnessed",
        "stages": {
            "data": {"kind": "data", "row": "text", "sources": {"test": {**source, "carry": ["choices", "gold"]}}},
            "harness": {**asked, **here, **fields},
            "by_length": ours,
            "plain": {**ours, "task": {**ours["task"], "length": "none"}},
        },
    }


@pytest.mark.long
def test_its_accuracies_are_those_of_our_own_ranking_and_have_intervals(folder: Path, tmp_path: Path):
    found = tilth.run(recipe(folder), tmp_path)
    theirs, detail = found["harness"].metrics, found["harness"].detail
    for name in ("one", "two"):
        assert theirs[f"{name}/colours/acc"] == found["plain"].metrics[f"{name}/accuracy"]
        assert theirs[f"{name}/colours/acc_norm"] == found["by_length"].metrics[f"{name}/accuracy"]
        assert theirs[f"{name}/colours/acc_low"] <= theirs[f"{name}/colours/acc"] <= theirs[f"{name}/colours/acc_high"]
    assert detail["differences"]["two"][0]["test"] == "McNemar, exact"
    stored = Path(found["harness"].store.url.removeprefix("file://")) / "harness/one/colours.json"
    assert json.loads(stored.read_text())["figures"]["colours/acc"] == theirs["one/colours/acc"]


@pytest.mark.long
def test_a_task_that_was_scored_stays_scored_when_the_next_one_fails(folder: Path, tmp_path: Path):
    task = yaml.safe_load((folder / "tasks/colours.yaml").read_text(encoding="utf-8"))
    missing = tmp_path / "rows.jsonl"
    (tmp_path / "tasks").mkdir()
    for name, rows in (("first", folder / "rows.jsonl"), ("second", missing)):
        told = {**task, "task": name, "dataset_kwargs": {"data_files": {"test": str(rows)}}}
        (tmp_path / f"tasks/{name}.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    plan = recipe(folder, tasks=["first", "second"], include=str(tmp_path / "tasks/*.yaml"))
    plan["stages"] = {"harness": plan["stages"]["harness"]}
    with pytest.raises(StageError, match="the data of second cannot be had"):
        tilth.run(plan, tmp_path / "out")
    [kept] = (tmp_path / "out").rglob("harness/one/first.json")
    told = json.loads(kept.read_text(encoding="utf-8"))
    kept.write_text(json.dumps({**told, "versions": {"first": "kept"}}), encoding="utf-8")
    missing.write_text((folder / "rows.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    found = tilth.run(plan, tmp_path / "out")["harness"]
    assert found.detail["models"]["one"]["versions"]["first"] == "kept", "it was not put to the model again"
    assert found.metrics["one/first/acc"] == found.metrics["one/second/acc"]


@pytest.mark.long
def test_figures_that_are_no_mean_and_those_of_groups_have_intervals_too(folder: Path, tmp_path: Path):
    """F1 of one question, perplexity of texts, and a group: each beside a plain count of what the harness logged."""
    task = yaml.safe_load((folder / "tasks/colours.yaml").read_text(encoding="utf-8"))
    (tmp_path / "tasks").mkdir()
    pairs = [[CHOICES[i % 4], CHOICES[(i // 4 + i + 1) % 4]] for i in range(30)]
    lines = [{"question": f"Is {i} it?", "choices": pair, "gold": i // 2 % 2} for i, pair in enumerate(pairs)]
    (tmp_path / "even.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    told = dict.fromkeys(("colours_too", "texts"), task["dataset_kwargs"])
    told["even"] = {"data_files": {"test": str(tmp_path / "even.jsonl")}}
    texts = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}"}
    made = {
        "even": {"metric_list": [{"metric": "f1"}, {"metric": "acc"}]}, "colours_too": {},
        "texts": {**texts, "metric_list": [{"metric": "bits_per_byte"}]},
    }  # fmt: skip
    for name, fields in made.items():
        content = {**task, "task": name, "dataset_kwargs": told[name], **fields}
        (tmp_path / f"tasks/{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    for name, by_size in (("by_documents", True), ("by_tasks", False)):
        group = {"group": name, "task": ["even", "colours_too"],
                 "aggregate_metric_list": [{"metric": "acc", "weight_by_size": by_size}]}  # fmt: skip
        (tmp_path / f"tasks/{name}.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    plan = recipe(folder, tasks=["even", "texts", "by_documents", "by_tasks"], include=str(tmp_path / "tasks/*.yaml"))
    plan["stages"] = {"harness": {**plan["stages"]["harness"], "bootstrap": {"samples": 300}}}
    found = tilth.run(plan, tmp_path / "out")["harness"]
    metrics, intervals = found.metrics, found.detail["models"]["two"]["intervals"]
    figures = {"even/f1": 30, "texts/bits_per_byte": 24, "by_documents/acc": 54, "by_tasks/acc": 54}
    for name, documents in figures.items():
        low, value, high = (metrics[f"two/{name}{end}"] for end in ("_low", "", "_high"))
        assert low < value < high, name
        assert intervals[name]["n"] == documents
    store = Path(found.store.url.removeprefix("file://")) / "harness"
    even = json.loads((store / "two/even.json").read_text())
    by_tasks = json.loads((store / "two/by_tasks.json").read_text())["samples"]
    both = [by_tasks[f"{name}/acc"] for name in ("even", "colours_too")]
    assert metrics["two/by_tasks/acc"] == pytest.approx(np.mean([np.mean(values) for values in both]))
    assert metrics["two/by_documents/acc"] == pytest.approx(np.mean(np.concatenate(both)))
    # the draws of F1 are those of the documents that `resamples` draws, and of both models the same
    assert np.std(even["draws"]["even/f1"]) > 0
    [paired] = [item for item in found.detail["differences"]["two"] if item["metric"] == "even/f1"]
    other = json.loads((store / "one/even.json").read_text())["draws"]["even/f1"]
    gaps = np.array(even["draws"]["even/f1"]) - other
    assert paired["test"] == "paired bootstrap"
    assert [paired["difference"][end] for end in ("low", "high")] == pytest.approx(np.percentile(gaps, [2.5, 97.5]))
    [bits] = [item for item in found.detail["differences"]["two"] if item["metric"] == "texts/bits_per_byte"]
    assert bits["less_is_better"]
    assert {item["family"] for item in found.detail["differences"]["two"]} == {len(found.detail["differences"]["two"])}


@pytest.mark.long
def test_a_figure_that_cannot_be_told_ends_nothing_and_a_group_of_groups_has_an_interval(folder: Path, tmp_path: Path):
    """As BBQ has scores of kinds of documents, of which there may be none, and MMLU groups of groups."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    task = yaml.safe_load((folder / "tasks/colours.yaml").read_text(encoding="utf-8"))
    (tasks / "partly.py").write_text(
        "import math\n\n\ndef scored(doc, results):\n    right = float(doc['gold'] == 0)\n"
        "    return {'acc': right, 'known': right if doc['gold'] < 2 else math.nan, 'nowhere': math.nan}\n\n\n"
        "def known(values):\n    told = [value for value in values if value == value]\n"
        "    return sum(told) / len(told) if told else math.nan\n",
        encoding="utf-8",
    )
    partly = {**task, "task": "partly", "metric_list": [{"metric": "acc"}]}
    own = "".join(
        f"- metric: {name}\n  aggregation: !function partly.known\n  higher_is_better: true\n"
        for name in ("known", "nowhere")
    )
    text = f"{yaml.safe_dump(partly, sort_keys=True)}process_results: !function partly.scored\n"
    text = text.replace("metric_list:\n- metric: acc\n", f"metric_list:\n- metric: acc\n{own}")
    (tasks / "partly.yaml").write_text(text, encoding="utf-8")
    (tasks / "colours.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    for name, parts in (("inner", ["partly"]), ("outer", ["inner", "colours"])):
        group = {"group": name, "task": parts, "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}]}
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    plan = recipe(folder, tasks=["outer"], include=str(tasks / "*.yaml"))
    plan["stages"] = {"harness": plan["stages"]["harness"]}
    found = tilth.run(plan, tmp_path / "out")["harness"]
    metrics, differences = found.metrics, found.detail["differences"]["two"]
    assert metrics["two/partly/acc"] == 0.25
    assert metrics["two/partly/known"] == 0.5
    assert metrics["two/partly/known_low"] < 0.5 < metrics["two/partly/known_high"]
    assert not [name for name in metrics if "nowhere" in name], "of no document it says anything"
    assert metrics["two/outer/acc"] == pytest.approx((0.25 + metrics["two/colours/acc"]) / 2)
    assert metrics["two/outer/acc_low"] < metrics["two/outer/acc"] < metrics["two/outer/acc_high"]
    assert found.detail["models"]["two"]["intervals"]["outer/acc"]["n"] == 48
    assert "outer/acc" in [item["metric"] for item in differences]


@pytest.mark.slow  # the harness reads all of its thousands of tasks first
def test_a_task_that_nobody_defined_is_named(folder: Path, tmp_path: Path):
    with pytest.raises(StageError, match="knows no task 'no_such_task'"):
        tilth.run(recipe(folder, tasks=["no_such_task"]), tmp_path)


def test_a_baseline_must_be_one_of_the_models(folder: Path):
    with pytest.raises(RecipeError, match="'three' is none of the models; use one of: one, two"):
        tilth.load(recipe(folder, baseline="three"))
