"""Figures of agreement of resampled items: the libraries' figures of all items, and intervals that hold."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from tilth.annotate import agreement
from tilth.data import agreement as resampled
from tilth.data.bootstrap import Floats, Statistic

NOTHING = np.nan


def table(seed: int, items: int = 60, people: int = 5, labels: int = 4, seen: float = 0.6) -> Floats:
    """People who are right two times in three, of whom each sees a part of the items."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, labels, size=(items, 1))
    said = np.where(rng.random((items, people)) < 2 / 3, truth, rng.integers(0, labels, size=(items, people)))
    return np.where(rng.random((items, people)) < seen, said, NOTHING)


def as_labels(marks: Floats) -> np.ndarray:
    return np.where(np.isnan(marks), -1, marks).astype(int)


@pytest.mark.parametrize("seed", range(5))
def test_of_all_items_they_are_what_the_libraries_say(seed: int) -> None:
    marks = table(seed)
    labels = as_labels(marks)
    expected: list[tuple[Statistic, float | None]] = [
        (resampled.alpha(marks, "nominal"), agreement.alpha(marks, "nominal")),
        (resampled.alpha(marks, "interval"), agreement.alpha(marks, "interval")),
        (resampled.fleiss(marks), agreement.fleiss(labels)),
        (resampled.of_pairs(marks, "nominal"), agreement.cohen(labels)),
        (resampled.of_pairs(marks, "quadratic"), agreement.cohen(labels, "quadratic")),
        (resampled.of_pairs(marks, "correlation"), agreement.pearson(marks)),
    ]
    for statistic, figure in expected:
        assert statistic.point() == pytest.approx(figure, abs=1e-12)


def test_of_drawn_items_they_are_those_of_a_table_that_holds_each_as_often() -> None:
    """Every statistic at a draw's weights, beside the library on the table whose items are repeated so."""
    marks = table(7)
    weights = np.random.default_rng(0).integers(0, 4, size=len(marks))
    repeated = np.repeat(marks, weights, axis=0)
    drawn = weights[None].astype(float)

    def of(statistic: Statistic, kept: Floats = marks) -> float:
        return float(statistic.of(drawn[:, (~np.isnan(kept)).sum(axis=1) > 1])[0])

    assert of(resampled.alpha(marks, "nominal")) == pytest.approx(agreement.alpha(repeated, "nominal"))
    assert of(resampled.alpha(marks, "interval")) == pytest.approx(agreement.alpha(repeated, "interval"))
    assert of(resampled.fleiss(marks)) == pytest.approx(agreement.fleiss(as_labels(repeated)))
    for kind, expected in (
        ("nominal", agreement.cohen(as_labels(repeated))),
        ("correlation", agreement.pearson(repeated)),
    ):
        assert float(resampled.of_pairs(marks, kind).of(drawn)[0]) == pytest.approx(expected)


def test_pairs_that_are_named_and_do_not_count_by_their_items() -> None:
    marks = table(3)
    twos = [(0, 1), (0, 3)]
    shared = [~np.isnan(marks[:, a]) & ~np.isnan(marks[:, b]) for a, b in twos]
    kappas = [cohen_kappa_score(marks[s, a], marks[s, b]) for s, (a, b) in zip(shared, twos, strict=True)]
    same = [np.mean(marks[s, a] == marks[s, b]) for s, (a, b) in zip(shared, twos, strict=True)]
    assert resampled.of_pairs(marks, "nominal", twos, weighted=False).point() == pytest.approx(np.mean(kappas))
    assert resampled.of_pairs(marks, "same", twos, weighted=False).point() == pytest.approx(np.mean(same))
    assert shared[0].sum() != shared[1].sum(), "else weights would make no difference"


def test_ranks_of_drawn_pairs_are_those_of_the_repeated_ones() -> None:
    rng = np.random.default_rng(5)
    one = rng.integers(0, 6, size=40).astype(float)
    other = one + rng.integers(0, 4, size=40)
    rows = [f"r{at // 2}" for at in range(40)]
    statistic = resampled.rank_correlation(one, other, rows)
    assert len(statistic) == 20, "two answers to one row are drawn together"
    assert statistic.point() == pytest.approx(spearmanr(one, other).statistic)
    weights = rng.integers(0, 3, size=20)
    names = sorted(set(rows))
    often = np.array([weights[names.index(row)] for row in rows])
    expected = spearmanr(np.repeat(one, often), np.repeat(other, often)).statistic
    assert statistic.of(weights[None].astype(float))[0] == pytest.approx(expected)


def test_intervals_hold_the_true_figure_about_as_often_as_they_say() -> None:
    """Of 200 samples of a large population 95 % should; a binomial leaves 178 to 198 for what holds 92 to 97 %."""
    whole = table(11, items=20_000, people=3, seen=0.8)
    truth = agreement.alpha(whole, "nominal")
    assert truth is not None
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = resampled.spread(resampled.alpha(whole[rng.integers(0, len(whole), size=120)], "nominal"), 400)
        assert low is not None
        held += low <= truth <= high
    assert 178 <= held <= 198


def test_what_most_draws_cannot_tell_has_no_interval() -> None:
    alike = np.zeros((20, 3))
    assert resampled.spread(resampled.fleiss(alike)) == (None, None)
    assert resampled.spread(resampled.of_pairs(alike, "nominal")) == (None, None)
    assert resampled.spread(resampled.alpha(alike, "interval")) == (None, None)
    assert resampled.spread(resampled.of_pairs(np.array([[0.0, 1.0]]), "same")) == (None, None), "one item"
    alone = np.full((9, 2), NOTHING)
    alone[:, 0] = 1
    assert resampled.spread(resampled.alpha(alone, "nominal")) == (None, None)
    assert resampled.spread(resampled.of_pairs(alone, "nominal")) == (None, None)


def test_many_pairs_of_people_are_told_in_bounded_memory() -> None:
    """Fifty people are 1,225 pairs; the sums of a thousand draws at once would be 98 MB."""
    marks = table(2, items=200, people=50, labels=3, seen=0.06)
    statistic = resampled.of_pairs(marks, "nominal")
    assert statistic.terms.shape == (200, len(list(combinations(range(50), 2))) * 8)
    low, high = resampled.spread(statistic)
    assert low is not None
    assert low < statistic.point() < high
