"""Figures of agreement against published examples, and what becomes of careless people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import finished_stage
from tilth.annotate import agreement
from tilth.annotate.exports import preferences
from tilth.annotate.judgements import Judgement
from tilth.annotate.quality import figures
from tilth.report import write_report
from tilth.runs import Run

_ = np.nan
#: Krippendorff's own example (2011, Computing Krippendorff's alpha-reliability, C): four people, twelve units
RELIABILITY = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]).T  # fmt: skip
#: Fleiss' kappa as Wikipedia works it out: ten subjects, fourteen people, five categories; kappa 0.210
COUNTS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def test_krippendorffs_own_example() -> None:
    assert agreement.alpha(RELIABILITY, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert agreement.alpha(RELIABILITY, "interval") == pytest.approx(0.849, abs=5e-4)


def test_fleiss_example() -> None:
    labels = np.array([np.repeat(np.arange(5), row) for row in COUNTS])
    assert agreement.fleiss(labels) == pytest.approx(0.210, abs=5e-4)


def test_cohens_example_is_the_mean_over_pairs() -> None:
    # 20 times both say yes, 5 and 10 times they differ, 15 times both say no: kappa 0.4
    pair = [(0, 0)] * 20 + [(0, 1)] * 5 + [(1, 0)] * 10 + [(1, 1)] * 15
    assert agreement.cohen(np.array(pair)) == pytest.approx(0.4)
    alone = np.array([(a, b, -1) for a, b in pair] + [(-1, -1, 0)])
    assert agreement.cohen(alone) == pytest.approx(0.4), "who shares no item with anybody counts for nothing"


def test_steps_that_nobody_took_lie_between_those_that_were_taken() -> None:
    pair = np.array([(1, 1), (1, 2), (5, 5), (2, 5), (5, 2), (1, 1)])
    apart, chance = (pair[:, 0] - pair[:, 1]) ** 2, (pair[:, :1] - pair[None, :, 1]) ** 2
    assert agreement.cohen(pair, "quadratic") == pytest.approx(1 - apart.mean() / chance.mean())


@pytest.mark.parametrize("labels", [np.zeros((3, 1), int), np.zeros((3, 2), int), np.full((2, 2), -1)])
def test_what_cannot_be_told_is_none(labels: np.ndarray) -> None:
    assert agreement.fleiss(labels) is None
    assert agreement.cohen(labels) is None
    assert agreement.alpha(np.where(labels < 0, np.nan, labels), "nominal") is None


def test_standardised_marks_take_away_who_is_strict() -> None:
    strict, mild = np.array([10.0, 20, 30]), np.array([70.0, 80, 90])
    z = agreement.standardised(np.stack([strict, mild], axis=1))
    assert z[:, 0] == pytest.approx([-np.sqrt(1.5), 0, np.sqrt(1.5)])
    assert z[:, 0] == pytest.approx(z[:, 1])


def judged(truth: np.ndarray, *people: tuple[np.ndarray, np.ndarray]) -> list[Judgement]:
    """Answers of people given as (first model preferred, first model shown as A), for each item."""
    found = []
    for person, (first, first_is_a) in enumerate(people, 1):
        for at in range(len(truth)):
            value = {"preferred": "m" if first[at] else "n", "choice": "A" if first[at] == first_is_a[at] else "B"}
            answers = {"m": f"m{at}", "n": f"n{at}"}
            seconds = 1.0 if person == 4 else 20.0
            found.append(
                Judgement(f"i{at}", "work", f"i{at}", "train", "p", answers, None, person, value, seconds, 0.0)
            )
    return found


@pytest.fixture
def crowd() -> tuple[np.ndarray, list[Judgement]]:
    """Three people who are right nine times in ten, and two who click A without reading."""
    rng = np.random.default_rng(3)
    truth = rng.random(200) < 0.5
    shown = [rng.random(200) < 0.5 for _ in range(5)]
    careful = [(np.where(rng.random(200) < 0.9, truth, ~truth), side) for side in shown[:3]]
    return truth, judged(truth, *careful, *((side, side) for side in shown[3:]))


def test_competence_tells_who_clicks_without_reading(crowd: tuple[np.ndarray, list[Judgement]]) -> None:
    truth, found = crowd
    lines = {line["person"]: line for line in figures(found)["people"]}
    assert min(lines[person]["competence"] for person in (1, 2, 3)) > 0.6
    assert max(lines[person]["competence"] for person in (4, 5)) < 0.2
    assert [lines[person]["speed"] for person in lines] == ["", "", "", "fast", ""]
    weighed = {pair.id: pair.chosen.startswith("m") for pair in preferences(found)}
    right = np.mean([weighed[f"i{at}"] == truth[at] for at in range(200)])
    votes = np.array([[item.value["preferred"] == "m" for item in found if item.item == f"i{at}"] for at in range(200)])
    assert right > np.mean((votes.mean(axis=1) > 0.5) == truth) + 0.03, "better than counting heads"


def test_items_of_one_row_are_drawn_together() -> None:
    """Three pairs of models of each of 40 rows that go the same way tell no more than one pair of each does."""
    truth, side = np.arange(40) % 4 > 0, np.arange(40) % 2 > 0
    other = np.where(np.arange(40) % 5 > 0, truth, ~truth)
    once = judged(truth, (truth, side), (other, ~side))
    thrice = [replace(item, item=f"{item.item}:{pair}") for pair in range(3) for item in once]
    alone, found = figures(once), figures(thrice)
    for kind in ("models", "agreement"):
        for line, expected in zip(found[kind], alone[kind], strict=True):
            ends = [line[end] for end in ("value", "low", "high")]
            assert ends == pytest.approx([expected[end] for end in ("value", "low", "high")], abs=0.02)
            assert line["low"] < line["value"] < line["high"]


def test_one_answer_alone_is_taken_and_a_split_vote_is_not() -> None:
    truth, side = np.ones(4, bool), np.array([True, False, True, False])
    assert [pair.reason for pair in preferences(judged(truth, (truth, side)))] == [None] * 4
    split = preferences(judged(truth, (truth, side), (~truth, side)))
    assert all(pair.reason is not None and pair.reason.startswith("undecided") for pair in split)


def test_two_models_that_answered_alike_are_no_pair() -> None:
    def marked(item: str, answers: dict[str, str], mark: int) -> Judgement:
        value = {"scores": {"fluency": mark}}
        return Judgement(item, "work", "r", "train", "Why?", answers, None, 1, value, 9.0, 0.0)

    found = preferences([marked("a", {"m": "So."}, 20), marked("b", {"n": "So."}, 90), marked("c", {"o": "No."}, 55)])
    fates = {(pair.chosen, pair.rejected): (pair.reason or "").partition(":")[0] for pair in found}
    assert fates == {("So.", "So."): "same", ("No.", "So."): "", ("So.", "No."): ""}


def test_who_failed_the_checks_does_not_count(crowd: tuple[np.ndarray, list[Judgement]], tmp_path: Path) -> None:
    import json

    from tilth.annotate.rows import Judged
    from tilth.annotate.stage import Feedback

    answers = {"check": "a", "not": "b"}
    checks = [
        Judgement(f"c{person}", "attention", "c", "train", "", answers, "check", person, {"preferred": said}, 1.0, 0.0)
        for person, said in enumerate(("check", "check", "check", "not", "not"), 1)
    ]
    place = tmp_path / "answers.jsonl"
    place.write_text("".join(json.dumps(item.plain()) + "\n" for item in [*crowd[1], *checks]))
    found = Judged.of(Feedback(answers=str(place)))
    assert found.excluded == 2
    assert {line["person"] for line in found.figures["people"]} == {1, 2, 3}


def test_the_report_of_a_run_tells_of_its_campaigns(crowd: tuple[np.ndarray, list[Judgement]], tmp_path: Path) -> None:
    run = Run(tmp_path)
    finished_stage(run, "other", "evaluate", "report", metrics={"score": 1.0})
    run.store.write_json("annotation/pairs.json", figures(crowd[1]))
    write_report(run)
    page = (tmp_path / "report.html").read_text()
    for told in ("People: pairs", "5 people gave 1,000 answers", "Krippendorff", "competence", "share of wins"):
        assert told in page
