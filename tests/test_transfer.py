"""Several tasks against each alone: figures by task, the transfer matrix, and what is advised."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from helpers import finished_stage
from tilth.data.schema import original
from tilth.errors import StageError
from tilth.evaluate import transfer
from tilth.evaluate.measures.base import Metric
from tilth.evaluate.measures.classes import Auc
from tilth.evaluate.stage import Evaluate
from tilth.report import write_report
from tilth.runs import Run
from tilth.train.tasks import metrics

SINGLE = {"bank": "bank_alone", "med": "med_alone"}
RIGHT = {  # how many of a task's 200 rows each model gets right
    "together": {"bank": 180, "med": 120},
    "bank_alone": {"bank": 176, "med": 90},
    "med_alone": {"bank": 60, "med": 170},
}


def predicted() -> dict[str, list[dict[str, Any]]]:
    """Rows of two tasks as each model predicts them; which of them are right is drawn."""
    found = {}
    for number, (model, right) in enumerate(RIGHT.items()):
        rng, rows = random.Random(number), []
        for task, hits in right.items():
            good = set(rng.sample(range(200), hits))
            for i in range(200):
                label = f"{task}{i % 2}"
                said = label if i in good else f"{task}{(i + 1) % 2}"
                row = original(f"{task}/{i}", "test", {"text": "x", "label": label})
                rows.append({**row, "task": task, "meta": {"prediction": said, "truncated": False}})
        found[model] = rows
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, transfer.Slice]:
    return transfer.slices(predicted(), SINGLE, 300, 0)


def test_every_model_is_scored_on_each_task(found: dict[str, transfer.Slice]) -> None:
    for model, right in RIGHT.items():
        for task, hits in right.items():
            score = found[task].models[model]["accuracy"]
            assert score.value == hits / 200
            assert score.low < score.value < score.high


def test_a_task_of_which_a_metric_says_nothing_has_no_figures() -> None:
    labels, found = ("a", "b"), {}
    for model in ("one", "two"):
        rows = [original(f"{task}{i}", "test", {"text": "x", "label": labels[i % 2 if task == "mixed" else 0]})
                for task in ("mixed", "same") for i in range(8)]  # fmt: skip
        meta = {"prediction": "a", "probabilities": {"a": 0.6, "b": 0.4}, "truncated": False}
        found[model] = [{**row, "task": row["id"][:-1], "meta": meta} for row in rows]
    assert list(transfer.slices(found, {}, 100, 0, [Auc(positive="a")])) == ["mixed"]
    with pytest.raises(StageError, match="same: auc ranks 'a' against one other label"):
        transfer.slices(found, {"mixed": "one", "same": "two"}, 100, 0, [Auc(positive="a")])
    answered = {name: [{**row, "meta": {"answers": ["x y"], "truncated": False}} for row in rows]
                for name, rows in found.items()}  # fmt: skip
    assert transfer.slices(answered, {}, 100, 0, [Metric.model_validate({"kind": "diversity"})]) == {}


def test_the_matrix_holds_what_one_tasks_model_gains_on_anothers_rows(found: dict[str, transfer.Slice]) -> None:
    gains = transfer.matrix(found, SINGLE)
    assert gains["bank"] == {"bank": 0, "med": pytest.approx((90 - 170) / 200)}
    assert gains["med"] == {"bank": pytest.approx((60 - 176) / 200), "med": 0}


def texts(task: str, nll: float, tokens: int, read: int = 40) -> list[dict[str, Any]]:
    """Rows of a task as a language model foresees them, which reads `read` of their 40 bytes."""
    said = {"nll": nll, "tokens": tokens, "bytes": read, "truncated": read < 40}
    rows = [original(f"{task}/{i}", "test", {"text": "x"}, said) for i in range(20)]
    return [{**row, "task": task} for row in rows]


ALONE = {"a": "a_alone", "b": "b_alone"}


def test_models_of_different_tokens_are_held_against_each_other_by_the_byte() -> None:
    """Of few tokens each is hard to foresee, so that perplexity is high where the text is foreseen better."""
    fine = {"a": (20.0, 12), "b": (24.0, 12)}
    told = {"a_alone": fine, "together": fine, "b_alone": {"a": (18.0, 6), "b": (18.0, 6)}}
    rows = {name: [row for task, said in tasks.items() for row in texts(task, *said)] for name, tasks in told.items()}
    found = transfer.slices(rows, ALONE, 100, 0)
    assert {part.metric for part in found.values()} == {"bits_per_byte"}
    gains = transfer.matrix(found, ALONE)
    assert gains["a"] == {"a": 0, "b": pytest.approx((18 - 24) / 40 / math.log(2))}
    assert gains["b"] == {"a": pytest.approx((20 - 18) / 40 / math.log(2)), "b": 0}
    assert {part.against_single["together"].metric for part in found.values()} == {"bits_per_byte"}
    assert transfer.flat(found)["task/b/a_alone/bits_per_byte"] == pytest.approx(24 / 40 / math.log(2))
    same = dict.fromkeys(rows, rows["a_alone"])
    assert {part.metric for part in transfer.slices(same, ALONE, 100, 0).values()} == {"perplexity"}


def test_single_models_that_read_different_parts_of_a_row_are_not_held_against_each_other() -> None:
    whole = [*texts("a", 20.0, 12), *texts("b", 20.0, 12)]
    cut = [*texts("a", 10.0, 6, read=20), *texts("b", 10.0, 6, read=20)]
    rows = {"a_alone": whole, "b_alone": cut, "together": whole}
    with pytest.raises(StageError, match="a: b_alone and a_alone read different parts of 20 of 20 rows"):
        transfer.slices(rows, ALONE, 100, 0)


def test_only_a_task_that_loses_is_to_be_kept_apart(found: dict[str, transfer.Slice]) -> None:
    assert transfer.harmed(found, "together") == ["med"]
    *by_task, advice = transfer.verdicts(found, SINGLE)
    assert [line.partition(":")[0] for line in by_task] == ["bank", "med"]
    assert by_task[1].endswith("together is worse at n = 200")
    assert advice.startswith("train med apart from the other tasks of together")


def test_nothing_is_advised_where_nothing_is_shown() -> None:
    same = {name: predicted()["bank_alone"] for name in RIGHT}
    slices = transfer.slices(same, SINGLE, 300, 0)
    assert transfer.verdicts(slices, SINGLE)[-1].endswith("nothing speaks for separating them")


def test_a_task_that_no_row_has_is_named() -> None:
    with pytest.raises(StageError, match=r"single names law; the rows are of the tasks bank, med"):
        transfer.slices(predicted(), {"law": "bank_alone"}, 100, 0)


@pytest.mark.parametrize(
    ("single", "says"),
    [
        ({"bank": "other"}, "single.bank: 'other' is none of the models; use one of: a, b"),
        ({"bank": "a", "med": "b"}, "single: no model of several tasks is left to compare; add one to models"),
    ],
)
def test_singles_are_models_and_leave_one_to_compare(single: dict[str, str], says: str) -> None:
    stage = Evaluate(models={"a": "@a", "b": "@b"}, data="@data", single=single)
    assert [str(problem) for problem in stage.check()] == [says]


def line(step: int, cosine: float) -> dict[str, Any]:
    tasks = {"bank": {"rows": 6, "items": 6, "loss": 2 / step, "weight": 1.5}}
    tasks["med"] = {"rows": 2, "items": 2, "loss": 4 / step, "weight": 0.5}
    matrix = [[1.0, cosine], [cosine, 1.0]]
    conflict = {"tasks": ["bank", "med"], "cosines": matrix}
    return {"step": step, "loss": 1 / step, "grad_norm": 1.0, "tasks": tasks, "conflict": conflict}


def test_metrics_tell_of_each_task(found: dict[str, transfer.Slice]) -> None:
    assert metrics([line(step, c) for step, c in ((1, 0.5), (2, -0.1), (4, -0.1))]) == {
        "loss/bank": 0.5, "weight/bank": 1.5, "rows/bank": 0.75,
        "loss/med": 1.0, "weight/med": 0.5, "rows/med": 0.25,
        "cosine": 0.1, "conflicting": pytest.approx(2 / 3, abs=1e-6),
    }  # fmt: skip
    assert metrics([{"step": 1, "loss": 1.0}]) == {}


def test_the_report_shows_tasks_cosines_and_transfer(tmp_path: Path, found: dict[str, transfer.Slice]) -> None:
    import json

    run = Run(tmp_path / "run")
    artifact = finished_stage(run, "together", "sft", "model")
    lines = [line(step, 0.3 - 0.1 * step) for step in range(1, 9)]
    artifact.store.write("trace.jsonl", "\n".join(map(json.dumps, lines)).encode())
    models = {
        name: {"intervals": {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}}, "task": "classification"}
        for name in RIGHT
    }
    told = {
        "split": "test", "rows": 400, "baseline": None, "verdicts": [], "models": models, "differences": {},
        **transfer.detail(found, SINGLE),
    }  # fmt: skip
    finished_stage(run, "evaluate", "evaluate", "report", detail=told)
    run.store.write("recipe.yaml", b"name: demo\nstages: {}\n")
    write_report(run)
    page = run.store.read("report.html").decode()
    assert "At the last step: bank: loss 0.250, weight 1.50; med: loss 0.500, weight 0.50" in page
    assert "bank and med lie furthest apart, at a mean cosine of -0.15" in page
    assert "Several tasks together against each alone" in page
    assert "Transfer: what the model of one task (row) gains" in page
