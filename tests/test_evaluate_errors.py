"""What an evaluation tells beside its scores: corrected tests, parts of the rows, contamination, errors, the report."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

import tilth
from helpers import finished_stage, write_dataset
from scripted import script
from tilth.data.bootstrap import Interval, Statistic, mean
from tilth.data.schema import original
from tilth.errors import StageError
from tilth.evaluate import bootstrap, transfer
from tilth.evaluate.measures.base import Metric
from tilth.evaluate.measures.classes import Auc, Calibration, Classification
from tilth.evaluate.mistakes import mistakes
from tilth.evaluate.scores import compared_with, score, shown, unlike, verdict
from tilth.evaluate.slices import cut_by, slices, values_of
from tilth.evaluate.stage import Evaluate
from tilth.report import write_report
from tilth.runs import Artifact, Out, Run
from tilth.storage import Store

SEEN = "please tell me where the card that I ordered three weeks ago has gone to"


@script
def always_card(text: str, prompt: Any) -> str:
    return "card"


@script
def keywords(text: str, prompt: Any) -> str:
    return "rate" if "rate" in text.partition("\n")[0] else "card"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Artifact]:
    """Two models on 24 rows, one of which is in the training rows; a stage and its run."""
    folder = tmp_path_factory.mktemp("errors")
    test = [{"text": f"what is the rate on day {i}?", "label": "rate"} for i in range(12)]
    test += [{"text": f"my card number {i} is lost <b>again</b>", "label": "card"} for i in range(11)]
    test.append({"text": f"{SEEN} today", "label": "rate"})
    train = [{"text": f"{SEEN} again", "label": "card"}, {"text": "the rate of exchange, day by day", "label": "rate"}]
    for name, rows in (("test", test), ("train", train)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sources = {name: {"kind": "jsonl", "path": str(folder / f"{name}.jsonl")} for name in ("train", "test")}
    writers = {name: {"kind": "scripted:Scripted", "script": name} for name in ("always_card", "keywords")}
    plan = {
        "name": "errors",
        "stages": {
            "data": {"kind": "data", "row": "labelled", "sources": sources},
            "evaluate": {
                "kind": "evaluate", "data": "@data", "task": {"kind": "generation", "generators": writers},
                "baseline": "always_card", "slices": ["label", "length", "origin"],
                "trained_on": {"data": "@data", "nearest": 1}, "bootstrap": {"samples": 100},
                "resources": {"workers": 0},
            },
        },
    }  # fmt: skip
    return Run(folder / "out"), tilth.run(plan, folder / "out")["evaluate"]


def test_parts_of_the_rows_are_scored_by_themselves(ran: tuple[Run, Artifact]):
    parts = ran[1].detail["slices"]
    by_label = {part["value"]: part for part in parts["label"]}
    assert (by_label["rate"]["rows"], by_label["card"]["rows"]) == (13, 11)
    assert by_label["rate"]["models"]["always_card"]["value"] == 0
    assert by_label["rate"]["models"]["keywords"]["value"] == pytest.approx(12 / 13)
    assert [part["value"] for part in parts["origin"]] == ["original"]
    assert sum(part["rows"] for part in parts["length"]) == 24


def test_a_row_that_was_trained_on_is_found_and_scored_apart(ran: tuple[Run, Artifact]):
    artifact = ran[1]
    assert artifact.metrics["contaminated"] == pytest.approx(1 / 24, abs=1e-6)
    [seen] = artifact.detail["contamination"].values()
    assert seen["size"] == 13
    parts = {part["value"]: part for part in artifact.detail["slices"]["contamination"]}
    assert (parts["seen in training"]["rows"], parts["not seen"]["rows"]) == (1, 23)


def test_errors_stand_beside_the_training_rows_that_they_resemble(ran: tuple[Run, Artifact]):
    model = ran[1].detail["models"]["keywords"]
    [error] = model["errors"]
    assert (error["said"], error["right"], error["score"]) == ("card", "rate", 0)
    assert error["text"] == f"{SEEN} today"
    [near] = error["nearest"]
    assert near["text"] == f"{SEEN} again"
    assert near["cosine"] > 0.8
    [pair] = model["confusions"]
    assert (pair["true"], pair["predicted"], pair["rows"]) == ("rate", "card", 1)
    assert len(ran[1].detail["models"]["always_card"]["confusions"][0]["examples"]) == 5


def test_the_report_shows_errors_escaped_with_their_neighbours(ran: tuple[Run, Artifact]):
    write_report(ran[0])
    page = ran[0].store.read("report.html").decode()
    assert "Errors: keywords" in page
    assert "rate taken for card: 13 rows" in page
    assert re.search(r"Nearest training rows \(1\).*?cosine 0\.[89]\d*", page, re.DOTALL)
    assert "By label" in page
    assert "Rows seen in training and not" in page
    assert "4.17% of the rows share wording" in page
    assert "<b>again</b>" not in page


def test_p_values_are_corrected_as_holm_wrote():
    assert bootstrap.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert bootstrap.holm([0.9, 0.8]) == [1.0, 1.0]
    assert bootstrap.holm([]) == []


def test_several_models_are_called_better_by_the_corrected_test():
    def rows(right: int) -> list[dict[str, Any]]:
        made = [original(f"r{i}", "test", {"text": "x", "label": "a"}) for i in range(100)]
        said = [{"prediction": "a" if i < right else "b", "truncated": False} for i in range(100)]
        return [{**row, "meta": meta} for row, meta in zip(made, said, strict=True)]

    scored = score({"base": rows(80), "one": rows(86), "two": rows(88), "three": rows(81)})
    found = compared_with(scored, "base", 100, 0)
    every = [item for name in ("one", "two", "three") for item in found[name]]
    assert [item.metric for item in every] == ["accuracy", "f1_macro"] * 3
    left, highest, corrected = list(every), 0.0, {}
    while left:  # Holm's steps: the smallest p first, times how many are left
        least = min(left, key=lambda item: item.p)
        highest = max(highest, min(1.0, len(left) * least.p))
        corrected[id(least)] = highest
        left = [item for item in left if item is not least]
    assert [item.holm for item in every] == pytest.approx([corrected[id(item)] for item in every])
    assert {item.family for item in every} == {6}
    assert found["one"][0].p < 0.05 < found["one"][0].decisive
    two = compared_with({name: scored[name] for name in ("base", "one")}, "base", 100, 0)["one"]
    assert [item.holm for item in two] == pytest.approx(bootstrap.holm([item.p for item in two]))
    scored = score({"base": rows(80), "one": rows(86)}, (Classification(show=("accuracy",)),))
    [alone] = compared_with(scored, "base", 100, 0)["one"]
    assert alone.holm is None, "one test needs no correction"


def test_training_rows_that_are_token_ids_end_it_before_any_model_is_asked(tmp_path: Path):
    rows = [original("t", "test", {"text": "x", "label": "card"})]
    packs = [original("p", "train", {"input_ids": [1, 2], "labels": [1, 2], "pack": "a"})]
    run = Run(tmp_path / "out")
    inputs = {}
    for name, held in (("data", rows), ("packs", packs)):
        found = finished_stage(run, name)
        write_dataset(found.store, held, "labelled" if name == "data" else "packed")
        inputs[f"@{name}"] = found
    stage = Evaluate(data="@data", models={"a": "nobody/has-it"}, trained_on={"data": "@packs"})
    out = Out("evaluate", "evaluate", "report", "0" * 64, {}, Store.at(tmp_path / "made"))
    with pytest.raises(StageError, match=r"evaluate: trained_on is read as text, but @packs holds packed rows"):
        stage.run(out, inputs)


def labelled(*said: tuple[str, str, float]) -> list[dict[str, Any]]:
    """Rows of (label, prediction, confidence)."""
    return [
        original(
            f"r{i}",
            "test",
            {"text": "x", "label": label},
            {
                "prediction": guess,
                "confidence": sure,
                "truncated": False,
                "probabilities": {guess: sure, "ab".replace(guess, ""): 1 - sure},
            },
        )
        for i, (label, guess, sure) in enumerate(said)
    ]


MIXED = labelled(("a", "a", 0.9), ("a", "b", 0.7), ("b", "b", 0.8), ("b", "a", 0.6), ("b", "b", 0.99))


@pytest.mark.parametrize(
    "metric", [Auc(positive="a"), Classification(show=("mcc",)), Classification(show=("f1_macro",)), Calibration()]
)
def test_the_worst_rows_are_wrong_ones_whatever_is_measured(metric: Metric):
    [(name, scored)] = score({"m": MIXED}, (metric,)).items()
    found = mistakes(MIXED, scored, None)["errors"]
    assert [(name, item["id"], item["metric"], item["score"]) for item in found] == [
        ("m", "r1", "accuracy", 0),
        ("m", "r3", "accuracy", 0),
    ]


def test_tags_that_are_all_right_are_no_error_where_there_is_no_entity():
    tags = [(["O", "O"], ["O", "O"]), (["B-x", "O"], ["O", "O"]), (["B-x"], ["B-x"])]
    rows = [
        original(f"r{i}", "test", {"tokens": ["w"] * len(true), "tags": true}, {"prediction": said, "truncated": False})
        for i, (true, said) in enumerate(tags)
    ]
    assert [item["id"] for item in mistakes(rows, score({"m": rows})["m"], None)["errors"]] == ["r1"]


@pytest.mark.parametrize("metric", [Auc(positive="a"), Classification(show=("mcc",))])
def test_what_takes_two_labels_has_no_figure_of_one(metric: Metric):
    scored = score({"m": MIXED}, (metric,))
    assert [part["models"] for part in cut_by(values_of(MIXED, "label"), scored, 100, 0)] == [{"m": {}}] * 2
    [whole] = cut_by(["all"] * 5, scored, 100, 0)
    assert whole["models"]["m"]["value"] == scored["m"].statistics[scored["m"].headline].point()


class Wordiness(Metric):
    """Words of an answer, of which fewer are better."""

    less_is_better: ClassVar[bool] = True

    def figures(self, rows: Sequence[Any]) -> dict[str, Statistic]:
        return {"words": mean([len(row["meta"]["answers"][0].split()) for row in rows])}


def test_a_metric_of_ones_own_says_that_less_is_better():
    def rows(*sizes: int) -> list[dict[str, Any]]:
        made = [({"text": "x"}, {"answers": ["w " * size], "truncated": False}) for size in sizes]
        return [
            {**original(f"r{i}", "test", *parts), "task": task} for task in "ab" for i, parts in enumerate(made * 8)
        ]

    predicted = {"long": rows(5, 6), "short": rows(2, 1)}
    scored = score(predicted, (Wordiness(),))
    [comparison] = compared_with(scored, "long", 200, 0)["short"]
    assert "short is better" in verdict("short", "long", *[Interval(1, 1, 1)] * 2, comparison, 16)
    assert mistakes(predicted["long"], scored["long"], None)["errors"][0]["score"] == 6
    single = {"a": "long", "b": "short"}
    found = transfer.slices({**predicted, "both": rows(9, 9)}, single, 200, 0, (Wordiness(),))
    assert transfer.matrix(found, single) == {"a": {"a": 0.0, "b": -4.0}, "b": {"a": 4.0, "b": 0.0}}
    assert transfer.harmed(found, "both") == ["a", "b"]


def test_chrf_is_no_share_whatever_its_order_of_words():
    assert shown("chrf+++", Interval(45.1, 40.0, 50.0)) == "45.1 [40.0, 50.0]"


def test_models_that_cut_texts_otherwise_are_compared_by_the_byte():
    def rows(nll: float, tokens: int) -> list[dict[str, Any]]:
        said = {"nll": nll, "tokens": tokens, "bytes": 20, "truncated": False}
        return [original(f"r{i}", "test", {"text": "x"}, said) for i in range(10)]

    scored = score({"coarse": rows(16.0, 4), "fine": rows(15.0, 9)})
    [(name, [only])] = compared_with(scored, "coarse", 100, 0).items()
    assert (name, only.metric) == ("fine", "bits_per_byte")
    assert only.difference.value == pytest.approx(-1 / 20 / 0.6931471805599453)
    assert scored["fine"].statistics["perplexity"].point() == pytest.approx(2.718281828459045 ** (15 / 9))


def test_models_that_read_different_parts_of_a_row_are_not_compared():
    def rows(size: int, cut: bool) -> list[dict[str, Any]]:
        short = [{"nll": 5.0, "tokens": 4, "bytes": 20 + (not cut), "truncated": False}] * 9
        long = {"nll": size / 5, "tokens": size // 4, "bytes": size, "truncated": cut}
        return [original(f"r{i}", "test", {"text": "x"}, said) for i, said in enumerate([*short, long])]

    scored = score(
        {"base": rows(400, False), "tuned": rows(100, True), "twin": rows(100, True), "odd": rows(401, False)}
    )
    assert unlike(scored["tuned"], scored["base"]) == 1
    found = compared_with({name: scored[name] for name in ("base", "tuned", "odd")}, "base", 100, 0)
    assert found["tuned"] == []
    tasks = {
        name: [{**row, "task": task} for task in ("a", "b") for row in rows(size, size < 400)]
        for name, size in (("alone", 400), ("both", 100))
    }
    with pytest.raises(StageError, match="a: both and alone read different parts of 1 of 10 rows"):
        transfer.slices(tasks, {"a": "alone"}, 100, 0)
    assert found["odd"], "read whole by both, whatever their first tokens"
    assert compared_with({name: scored[name] for name in ("tuned", "twin")}, "tuned", 100, 0)["twin"]


def test_rows_fall_under_what_their_meta_says():
    rows = [original(f"r{i}", "test", {"text": "x"}, {"source": name}) for i, name in enumerate(("web", None, "web"))]
    assert values_of(rows, "meta.source") == ["web", None, "web"]
    assert [part["rows"] for part in slices({"m": rows}, {}, ["meta.source"], 100, 0)["meta.source"]] == [2]
    with pytest.raises(StageError, match=r"no row has anything at meta\.sorce; in meta rows have meta\.source"):
        slices({"m": rows}, {}, ["meta.sorce"], 100, 0)
    made = {**rows[0], "via": "eda", "parent": "p"}
    assert values_of([rows[0], made], "origin") == ["original", "made by eda"]
    sized = [original(f"n{n}", "test", {"text": "w " * n}) for n in (1, 2, 3, 4, 8, 9, 20, 30)]
    lengths = [
        "1–2 words",
        "1–2 words",
        "3–6 words",
        "3–6 words",
        "7–11 words",
        "7–11 words",
        "12–30 words",
        "12–30 words",
    ]
    assert values_of(sized, "length") == lengths
    same = [original(f"s{n}", "test", {"text": "w " * n}) for n in (7, 7, 7, 7, 7, 16)]
    assert values_of(same, "length") == ["7 words"] * 5 + ["8–16 words"]
