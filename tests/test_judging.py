"""Judges as an evaluation: outcomes counted, biases named, agreement with people, ratings against plain references."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

import tilth
from campaign import Campaign
from helpers import write_dataset
from scripted import script
from tilth.annotate.config import Annotation
from tilth.annotate.items import WORK, campaign
from tilth.data.agreement import rank_correlation, spread
from tilth.data.schema import original
from tilth.errors import RecipeError, StageError
from tilth.evaluate.judging.agreement import spearman
from tilth.evaluate.judging.people import People, Verdicts, majority
from tilth.evaluate.judging.ranking import length_controlled, ratings
from tilth.evaluate.judging.stage import JudgeAnswers
from tilth.evaluate.judging.tally import Draws, Judged, agreements, self_preference, tally
from tilth.report import write_report
from tilth.runs import Artifact, Out, Run
from tilth.storage import Store

READER = "test_preferences:Reader"
PEOPLE = ["annotator1", "annotator2", "annotator3"]


def pairwise(habit: str = "length") -> dict[str, Any]:
    return {"kind": "pairwise", "generator": {"kind": READER, "habit": habit}}


def recipe(folder: Path, rows: list[dict[str, Any]], judges: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Rows with two models' answers in them, and judges of those, in this process."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    carry = sorted({name for row in rows for name in row} - {"text"})
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl"), "carry": carry}
    stage = {
        "kind": "judge", "data": "@data", "columns": {"one": "meta.response1", "two": "meta.response2"},
        "judges": judges, "bootstrap": {"samples": 100}, "resources": {"workers": 0}, **fields,
    }  # fmt: skip
    data = {"kind": "data", "row": "text", "sources": {"test": source}, "clean": {"duplicates": "keep"}}
    return {"name": "judged", "stages": {"data": data, "judged": stage}}


@pytest.fixture(scope="module")
def judgements(shared: Path) -> list[dict[str, Any]]:
    """PandaLM's pairs, 150 of them, each judged by three people."""
    rows = json.loads((shared / "data/pandalm/pandalm_testset-v1.json").read_text(encoding="utf-8"))[:150]
    kept = ("response1", "response2", *PEOPLE)
    return [
        {"text": f"{row['idx']}. {row['instruction']}\n{row['input']}", **{name: row[name] for name in kept}}
        for row in rows
        if all(row[name].strip() and "\n\n" not in row[name] for name in ("response1", "response2"))
    ]


def test_a_judge_that_counts_letters_is_found_out_by_people_and_length(
    judgements: list[dict[str, Any]], tmp_path: Path
):
    people = {"verdicts": {"columns": [f"meta.{name}" for name in PEOPLE], "models": ["two", "one"]}}
    people["verdicts"]["codes"] = {"1": "second", "2": "first", "0": "tie"}  # the models are named the other way round
    plan = recipe(
        tmp_path, judgements, {"length": pairwise(), "first": pairwise("first")}, baseline="one", people=people
    )
    artifact = tilth.run(plan, tmp_path / "out")["judged"]
    told = artifact.detail["judges"]["length"]

    share = {True: 1.0, False: 0.0}
    own = [
        0.5 if len(row["response1"]) == len(row["response2"]) else share[len(row["response1"]) > len(row["response2"])]
        for row in judgements
    ]
    win_rate = told["against"]["two"]["win_rate"]
    assert win_rate["value"] == pytest.approx(1 - np.mean(own))
    assert win_rate["low"] < win_rate["value"] < win_rate["high"]
    assert win_rate["n"] == len(judgements)
    assert told["biases"]["longer_wins"]["value"] == 1
    assert told["biases"]["position"]["value"] == 0

    said = [[{1: 1.0, 2: 0.0, 0: 0.5}[row[name]] for name in PEOPLE] for row in judgements]
    most = [Counter(votes).most_common(1)[0][0] if max(Counter(votes).values()) > 1 else 0.5 for votes in said]
    as_text = [list(map(str, column)) for column in (own, most, *zip(*said, strict=True))]
    agreed = artifact.detail["agreement"]
    assert agreed["with_people"]["length"]["majority"]["kappa"] == pytest.approx(cohen_kappa_score(*as_text[:2]))
    assert agreed["with_people"]["length"]["majority"]["same"] == pytest.approx(
        np.mean(np.array(own) == np.array(most))
    )
    among = [cohen_kappa_score(one, other) for one, other in combinations(as_text[2:], 2)]
    assert agreed["people"]["kappa"] == pytest.approx(np.mean(among))
    assert artifact.metrics["length/kappa_people"] < agreed["people"]["kappa"], "letters are not what people count"
    found = [artifact.metrics[f"length/kappa_people{end}"] for end in ("_low", "", "_high")]
    assert found == sorted(found)
    assert found[2] < agreed["people"]["kappa_low"], "beyond what other rows could have said"

    placed = artifact.detail["judges"]["first"]
    assert (placed["biases"]["position"]["value"], placed["biases"]["first_place"]["value"]) == (1, 1)
    assert placed["against"]["two"]["win_rate"]["value"] == 0.5, "what the place decides is a tie"


JUDGED: list[str] = []


@script
def notes_the_question(text: str, prompt: Any) -> str:
    JUDGED.append(text.partition("[Question]\n")[2].partition("\n\n[Answer A]")[0])
    return "A"


@script
def sweet_or_sour(text: str, prompt: Any) -> str:
    turns = [prompt.messages] if isinstance(prompt.messages, str) else [turn["content"] for turn in prompt.messages]
    return "sweet" if len("".join(turns)) % 2 else "sour"


@script
def sour_always(text: str, prompt: Any) -> str:
    return "sour"


@pytest.mark.parametrize("form", ["chat", "text"])
def test_a_judge_reads_the_instruction_and_the_examples_that_models_read(tmp_path: Path, form: str):
    rows = {
        "train": [{"text": "lemon", "label": "sour"}],
        "test": [{"text": f"plum {n}", "label": "sweet"} for n in range(2)],
    }
    sources = {}
    for split, held in rows.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held), encoding="utf-8")
        sources[split] = {"kind": "jsonl", "path": str(tmp_path / f"{split}.jsonl")}
    writers = {name: {"kind": "scripted:Scripted", "script": name} for name in ("sweet_or_sour", "sour_always")}
    task = {
        "kind": "generation", "prompt": "Taste of {{ text }}, {{ labels | join(' or ') }}?", "form": form,
        "shots": {"count": 1}, "generators": writers,
    }  # fmt: skip
    judges = {
        "reader": {"kind": "pairwise", "generator": {"kind": "scripted:Scripted", "script": "notes_the_question"}}
    }
    here = {"bootstrap": {"samples": 100}, "resources": {"workers": 0}}

    def judged(**fields: Any) -> set[str]:
        JUDGED.clear()
        stages = {
            "data": {"kind": "data", "row": "labelled", "sources": sources},
            "asked": {"kind": "evaluate", "data": "@data", "task": task, **here},
            "judged": {"kind": "judge", "answers": "@asked", "judges": judges, **fields, **here},
        }
        tilth.run({"name": "shown", "stages": stages}, tmp_path / "out")
        return set(JUDGED)

    shown, own = "Taste of lemon, sour or sweet?", [f"Taste of plum {n}, sour or sweet?" for n in range(2)]
    chat = {f"Human: {shown}\n\nAssistant: sour\n\nHuman: {question}\n\nAssistant:" for question in own}
    text = {f"{shown} sour\n\n{question}" for question in own}
    assert judged() == (chat if form == "chat" else text)
    assert judged(question="{{ text }}?") == {"plum 0?", "plum 1?"}, "what is told goes first"
    _, items = campaign(
        tmp_path / "out", Annotation.model_validate({"items": {"stage": "asked"}, "form": {"kind": "direct"}})
    )
    work = [item for item in items if item.kind == WORK]
    assert sorted({item.prompt for item in work}) == own, "people read the question, without what was shown before it"


@script
def long_winded(text: str, prompt: Any) -> str:
    return f"{text} well, well"


@script
def curt(text: str, prompt: Any) -> str:
    return "ok"


@script
def middling(text: str, prompt: Any) -> str:
    return "okay"


def test_models_of_an_evaluation_are_judged_and_ranked(tmp_path: Path):
    rows = [{"prompt": f"Say {i}.", "completion": "x"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    writers = {name: {"kind": "scripted:Scripted", "script": name} for name in ("curt", "middling", "long_winded")}
    here = {"resources": {"workers": 0}, "bootstrap": {"samples": 100}}
    task = {"kind": "generation", "metrics": [{"kind": "exact_match"}], "generators": writers}
    judges = {"pairs": pairwise(), "marks": {"kind": "aspects", "generator": {"kind": READER}}}
    plan = {
        "name": "ranked",
        "stages": {
            "data": {
                "kind": "data", "row": "completion",
                "sources": {"test": {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")}},
            },
            "evaluate": {"kind": "evaluate", "data": "@data", "task": task, **here},
            "judged": {"kind": "judge", "answers": "@evaluate", "judges": judges, **here},
        },
    }  # fmt: skip
    found = tilth.run(plan, tmp_path / "out")
    detail = found["judged"].detail
    for judge in ("pairs", "marks"):
        elo = detail["judges"][judge]["elo"]
        assert elo["long_winded"]["value"] > elo["middling"]["value"] > elo["curt"]["value"]
        assert np.mean([item["value"] for item in elo.values()]) == pytest.approx(1000)
        assert elo["curt"]["n"] == 12
    assert detail["judges"]["marks"]["marks"]["middling"]["value"] == 4
    both = detail["agreement"]["judges"]["pairs and marks"]
    assert both == {"pairs": 36, **figure("same", 1.0, 1.0, 1.0), **figure("kappa")}
    assert detail["verdicts"][0].startswith("pairs: long_winded ")
    plan["stages"]["evaluate"]["task"]["metrics"].append({"kind": "rouge", "types": ["rouge1"]})
    marks = plan["stages"]["judged"]["judges"]["marks"]
    marks["generator"]["habit"] = "mute"  # another judge, who would end the stage; the other one is not asked again
    with pytest.raises(StageError, match="marks could judge no row"):
        tilth.run(plan, tmp_path / "out")
    del plan["stages"]["judged"]["judges"]["marks"]
    again = tilth.run(plan, tmp_path / "out")["judged"]
    assert again.detail["judges"]["pairs"] == detail["judges"]["pairs"]
    assert again.store.sub("predictions/pairs").read_json("said.json")["from"] is not None
    write_report(Run(tmp_path / "out"))
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Bradley-Terry ratings on Elo" in page
    assert "decided pairs that the longer answer won" in page


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"baseline": "tow"}, "baseline names 'tow'"),
        ({"people": {"ratings": {"one": ["meta.a"], "tow": ["meta.b"]}}}, r"people\.ratings names 'tow'"),
        (
            {"people": {"verdicts": {"columns": ["meta.a"], "models": ["one", "tow"]}}},
            r"people\.verdicts\.models names 'tow', which is none of the models: one, two",
        ),
    ],
)
def test_models_that_an_evaluation_does_not_have_are_refused_before_it_is_judged(
    tmp_path: Path, fields: dict[str, Any], says: str
):
    store, out = Store.at(tmp_path / "evaluate"), Store.at(tmp_path / "judged")
    row = original("r", "test", {"prompt": "q", "completion": "a"})
    write_dataset(store.sub("predictions/one"), [row], "completion")
    told = {"models": {name: {"task": "generation"} for name in ("one", "two")}}
    evaluated = Artifact("evaluate", "evaluate", "report", "e" * 64, store, {}, detail=told)
    stage = JudgeAnswers.model_validate({"answers": "@evaluate", "judges": {"j": pairwise()}, **fields})
    with pytest.raises(StageError, match=says):
        stage.run(Out("judged", "judge", "report", "f" * 64, {}, out), {"@evaluate": evaluated})
    assert not out.list("predictions"), "nobody was asked"


def test_answers_that_nobody_wrote_cannot_be_judged(tmp_path: Path):
    plan = recipe(tmp_path, [{"text": "q", "response1": "a", "response2": None}], {"j": pairwise()})
    with pytest.raises(StageError, match=r"no answer of two in meta\.response2"):
        tilth.run(plan, tmp_path / "out")


def test_a_judge_that_says_nothing_of_use_ends_the_stage(tmp_path: Path):
    rows = [{"text": f"q{i}", "response1": "a", "response2": "bb"} for i in range(3)]
    with pytest.raises(StageError, match="j could judge no row"):
        tilth.run(recipe(tmp_path, rows, {"j": pairwise("mute")}), tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"answers": "@data"}, "needs exactly one of answers and data"),
        ({"baseline": "three"}, "'three' is none of the models; use one of: one, two"),
        ({"people": {}}, "say nothing"),
        ({"question": "{{ missing }}"}, "names missing"),
    ],
)
def test_what_cannot_be_judged_is_said_before_anything_starts(tmp_path: Path, fields: dict[str, Any], says: str):
    rows = [{"text": "q", "response1": "a", "response2": "b"}]
    with pytest.raises(RecipeError, match=says):
        tilth.load(recipe(tmp_path, rows, {"j": pairwise()}, **fields))


def test_ratings_are_the_most_likely_ones():
    wins = np.array([[0, 7, 9], [3, 0, 5.5], [1, 4.5, 0]])

    def unlikely(strengths: Any) -> float:
        logits = strengths[:, None] - strengths[None, :]
        return float(-(wins * np.log(expit(logits))).sum() + strengths.sum() ** 2)

    best = minimize(unlikely, np.zeros(3), tol=1e-12).x
    expected = 1000 + 400 / np.log(10) * (best - best.mean())
    assert ratings(wins[None], prior=0)[0] == pytest.approx(expected, abs=0.05)


def test_a_model_that_never_wins_has_a_rating():
    found = ratings(np.array([[[0, 10], [0, 0]]], float))[0]
    assert np.isfinite(found).all()
    assert found[0] > found[1]


@pytest.mark.parametrize("games", [10, 1000])
def test_ratings_are_the_most_likely_ones_where_some_always_lose(games: int):
    ordered = np.triu(np.full((5, 5), float(games)), 1)
    kept = ordered + 0.5 * (1 - np.eye(5))

    def unlikely(strengths: Any) -> tuple[float, Any]:
        share = expit(strengths[:, None] - strengths[None, :])
        slope = (kept - (kept + kept.T) * share).sum(axis=1)
        return float(-(kept * np.log(share)).sum()), -slope

    best = minimize(unlikely, np.zeros(5), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000}).x
    expected = 1000 + 400 / np.log(10) * (best - best.mean())
    mixed = np.stack([ordered, np.full((5, 5), 3.0)])
    found = ratings(mixed)
    assert found[0] == pytest.approx(expected, abs=0.01)
    assert found[1] == pytest.approx(1000, abs=1e-6)


def test_the_win_rate_at_equal_length_is_that_of_a_logistic_model():
    rng = np.random.default_rng(0)
    long, short = rng.normal(300, 80, 400), rng.normal(200, 50, 400)
    apart = np.tanh((long - short) / (long - short).std())
    won = (rng.random(400) < expit(2 * apart)).astype(float)
    model = LogisticRegression(C=1e8, tol=1e-10).fit(apart[:, None], won)
    found = length_controlled(won, long, short)
    assert found.point() == pytest.approx(float(expit(model.intercept_[0])), abs=1e-4)
    assert abs(found.point() - 0.5) < won.mean() - 0.5, "what length won is taken off"
    shuffled = rng.permutation(400)
    assert length_controlled(1 - won[shuffled], short[shuffled], long[shuffled]).point() == pytest.approx(
        1 - found.point()
    )


def figure(
    name: str, value: float | None = None, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def test_verdicts_that_nobody_knows_are_refused_and_majorities_may_be_ties():
    assert [majority(v) for v in ([1.0, 1.0, 0.0], [1.0, 0.0], [None, None], [None, 0.0])] == [1.0, 0.5, None, 0.0]
    verdicts = Verdicts(columns=("meta.a",), models=("x", "y"))
    assert verdicts.of({"id": "r", "meta": {"a": 2}}) == [0.0]
    with pytest.raises(StageError, match="'3' is no verdict"):
        verdicts.of({"id": "r", "meta": {"a": "3"}})


def test_a_judge_that_favours_its_own_model_is_told_by_the_others():
    def judged(shares: list[float]) -> Judged:
        rows = [
            {"id": f"r{i}", "meta": {"judged": {"pairs": [["mine", "other", s, False, False]]}, "candidates": {}}}
            for i, s in enumerate(shares)
        ]
        return Judged(("mine", "other"), rows)

    told = {"me": judged([1, 1, 1, 0]), "a": judged([0, 1, 0, 0.5])}
    draws = Draws(400)
    [told_of_mine] = self_preference(told, {"me": ["mine"]}, draws)["me"]
    low, high = told_of_mine.pop("low"), told_of_mine.pop("high")
    assert told_of_mine == {"model": "mine", "own": 0.75, "others": 0.375, "excess": 0.375}
    # rows differ by 1, 0, 1 and -0.5, and four of them tell little
    assert -0.5 <= low < 0.375 < high <= 1
    told_of_mine |= {"low": low, "high": high}
    mine_too = {**told, "me again": judged([1, 1, 1, 1])}
    found = self_preference(mine_too, {"me": ["mine", "other"], "me again": ["mine"]}, draws)
    assert found["me"][0] == told_of_mine, "a judge of the same model is no other one"
    assert found["me again"][0]["others"] == 0.375
    assert [item["model"] for item in found["me"]] == ["mine", "other"], "a model that answered under two names"


def test_pairs_of_one_row_are_drawn_together_and_rows_without_a_word_do_not_count():
    """Of three models each row has three pairs that go the same way: 20 rows tell as much as 20 pairs do."""
    models = ("a", "b", "c")

    def row(at: int) -> dict[str, Any]:
        pairs = [[*two, 1.0, at % 2 > 0, False] for two in combinations(models, 2)]
        answers = {name: "x" * (length if at % 2 else 4 - length) for length, name in enumerate(models, 1)}
        judged = {"pairs": pairs if at < 20 else [], "failures": []}
        return {"id": f"r{at}", "meta": {"candidates": answers, "judged": judged}}

    draws = Draws(2000)
    told = tally(Judged(models, [row(at) for at in range(30)]), None, draws)
    for figure_of in ("position", "longer_wins"):
        found = told["biases"][figure_of]
        alone = draws.mean([float(at % 2) for at in range(20)])
        assert found["value"] == 0.5
        assert (found["low"], found["high"], found["n"]) == pytest.approx((alone["low"], alone["high"], 20), abs=0.051)
    assert told["elo"]["a"]["n"] == 20


def test_of_several_answers_to_one_row_no_p_of_ranks_is_told():
    one, other = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 3.0, 2.0, 4.0, 6.0, 5.0]
    alone = spearman(one, other, list("abcdef"))
    assert alone["p"] == pytest.approx(spearmanr(one, other).pvalue)
    assert spearman(one, other, list("aabbcc")) == {**alone, "p": None, **ends_of(one, other, list("aabbcc"))}


def ends_of(one: list[float], other: list[float], rows: list[str]) -> dict[str, Any]:
    low, high = spread(rank_correlation(np.array(one), np.array(other), rows))
    return {"low": low, "high": high}


def test_a_judge_that_shares_no_pair_with_people_has_no_agreement_with_them():
    def row(name: str, **meta: Any) -> dict[str, Any]:
        return {"id": name, "meta": {"candidates": {}, **meta}}

    rows = [row("r0", judged={"pairs": [["x", "y", 1.0, False, False]]}), row("r1", judged={}, said=1)]
    people = People(verdicts=Verdicts(columns=("meta.said",), models=("x", "y")))
    found = agreements({"j": Judged(("x", "y"), rows)}, people, Draws(100))
    assert found["with_people"]["j"]["each"] == {"pairs": 0, **figure("same"), **figure("kappa")}
    json.dumps(found, allow_nan=False)


@script
def red(text: str, prompt: Any) -> str:
    return f"Red says {text}"


@script
def blue(text: str, prompt: Any) -> str:
    return f"Blue says {text}"


@script
def prefers_red(text: str, prompt: Any) -> str:
    return "A" if "[Answer A]\nRed" in text else "B"


def test_judges_are_held_against_the_people_of_a_campaign_on_the_same_answers(tmp_path: Path):
    """One person prefers red everywhere, another for even rows alone: as often as not most people agree with it."""
    rows = [{"prompt": f"Row {n}?", "completion": "."} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    here = {"bootstrap": {"samples": 100}, "resources": {"workers": 0}}
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")}
    writers = {name: {"kind": "scripted:Scripted", "script": name} for name in ("red", "blue")}
    judge = {"kind": "pairwise", "generator": {"kind": "scripted:Scripted", "script": "prefers_red"}}
    stages: dict[str, Any] = {
        "data": {"kind": "data", "row": "completion", "sources": {"test": source}},
        "asked": {"kind": "evaluate", "data": "@data",
                  "task": {"kind": "generation", "generators": writers, "metrics": [{"kind": "exact_match"}]}, **here},
    }  # fmt: skip
    tilth.run({"name": "asked", "stages": stages}, tmp_path / "out")
    held = Campaign(tmp_path / "out", items={"stage": "asked"}, overlap=2)
    manager = held.manager()
    for name, everywhere in (("Ann", True), ("Ben", False)):
        person = held.annotator(name, manager)
        for _ in rows:
            number = int(re.search(r"Row (\d)", person.get("/work").text).group(1))
            person.prefer("red" if everywhere or number % 2 == 0 else "blue")
    answers = tmp_path / "answers.jsonl"
    answers.write_text(manager.get("/manage/export/answers.jsonl").text, encoding="utf-8")
    stages["judged"] = {
        "kind": "judge", "answers": "@asked", "judges": {"j": judge}, "people": {"campaign": str(answers)}, **here,
    }  # fmt: skip
    agreed = tilth.run({"name": "asked", "stages": stages}, tmp_path / "out")["judged"].detail["agreement"]
    assert (agreed["people"]["pairs"], agreed["people"]["same"]) == (6, 0.5)
    assert agreed["people"]["kappa"] == pytest.approx(0.0)
    assert agreed["people"]["same_low"] < 0.5 < agreed["people"]["same_high"]
    assert (agreed["with_people"]["j"]["majority"]["pairs"], agreed["with_people"]["j"]["majority"]["same"]) == (6, 0.5)
    assert agreed["with_people"]["j"]["each"]["same"] == pytest.approx(0.75)
    answers.write_text(answers.read_text(encoding="utf-8").replace("says", "said"), encoding="utf-8")
    with pytest.raises(StageError, match="holds no word on these answers"):
        tilth.run({"name": "asked", "stages": stages}, tmp_path / "out")


def test_marks_of_a_campaign_are_held_against_a_judges_scores(tmp_path: Path):
    told = [
        {"item": f"r{n}:m", "kind": "work", "answers": {"m": "x"}, "person": person,
         "value": {"scores": {"fluency": 10 * n, "relevance": 10 * n + 10 * person}}}
        for n in range(4) for person in (1, 2)
    ]  # fmt: skip
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    rows = [
        {**original(f"r{n}", "test", {"text": "q"}), "meta": {"candidates": {"m": "x"}, "judged": {"scores": {"m": n}}}}
        for n in range(4)
    ]
    people = People(campaign=str(tmp_path / "answers.jsonl"))
    found = agreements({"j": Judged(("m",), rows)}, people, Draws(100))
    assert (found["ratings"]["j"]["n"], found["ratings"]["j"]["rho"]) == (4, pytest.approx(1.0))
    # two criteria of five steps outweigh one of a hundred that says the opposite, by a little at each answer
    steps = [
        {**line, "value": {"scores": {"fluency": 1 + n, "coherence": 1 + n, "relevance": 100 - 20 * n}}}
        for line, n in zip(told, (n for n in range(4) for _ in range(2)), strict=True)
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    assert agreements({"j": Judged(("m",), rows)}, people, Draws(100))["ratings"]["j"]["rho"] == pytest.approx(1.0)
    (tmp_path / "answers.jsonl").write_text("{}\n")
    with pytest.raises(StageError, match="holds no exported answers"):
        agreements({"j": Judged(("m",), rows)}, people, Draws(100))
