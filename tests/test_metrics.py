"""Scores and their uncertainty against independent references: plain loops, closed forms, SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from tilth.config import digest, identity
from tilth.data.bootstrap import interval, mean
from tilth.data.schema import original
from tilth.evaluate import bootstrap, metrics
from tilth.evaluate.measures.classes import Classification
from tilth.evaluate.scores import score

TRUTH = ["cat", "cat", "cat", "dog", "dog", "owl", "owl", "owl"]
GUESS = ["cat", "dog", "cat", "dog", "dog", "owl", "cat", "yak"]


def noisy(rows: int, right: float, seed: int, classes: int = 5) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, rows)
    guess = np.where(rng.random(rows) < right, truth, rng.integers(0, classes, rows))
    return [f"c{i}" for i in truth], [f"c{i}" for i in guess]


def test_accuracy_is_the_share_of_equal_labels():
    assert metrics.accuracy(TRUTH, GUESS).point() == 5 / 8


def test_macro_f1_counted_by_hand():
    # cat: tp 2, fp 1, fn 1; dog: tp 2, fp 1, fn 0; owl: tp 1, fp 0, fn 2; yak: predicted once, never right
    by_hand = (4 / 6 + 4 / 5 + 2 / 4 + 0) / 4
    assert metrics.f1_macro(TRUTH, GUESS).point() == pytest.approx(by_hand)
    assert metrics.averages(TRUTH, GUESS)["f1_macro"] == pytest.approx(by_hand)


def test_micro_scores_equal_accuracy_with_one_label_a_row():
    found = metrics.averages(TRUTH, GUESS)
    assert found["f1_micro"] == found["precision_micro"] == found["recall_micro"] == pytest.approx(5 / 8)


def test_per_class_counts_every_class_that_is_true_or_predicted():
    table = {row["label"]: row for row in metrics.per_class(TRUTH, GUESS)}
    assert table["cat"] == pytest.approx(
        {"label": "cat", "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3, "predicted": 3}
    )
    assert table["yak"]["support"] == 0
    assert table["yak"]["predicted"] == 1


def test_confusion_has_true_labels_as_rows():
    labels = metrics.label_set(TRUTH, GUESS)
    matrix = metrics.confusion(TRUTH, GUESS, labels)
    for i, true in enumerate(labels):
        for j, guess in enumerate(labels):
            assert matrix[i, j] == sum(t == true and g == guess for t, g in zip(TRUTH, GUESS, strict=True))


def test_answers_of_every_row_are_no_classes():
    made = [original(f"r{i}", "test", {"text": "x"}) for i in range(600)]
    said = [
        {"prediction": f"answer {i}", "references": [f"answer {i - i % 2}"], "truncated": False} for i in range(600)
    ]
    rows = [{**row, "meta": meta} for row, meta in zip(made, said, strict=True)]
    many, few = score({"m": rows})["m"], score({"m": rows[:100]})["m"]
    assert {name: item.point() for name, item in many.statistics.items()} == {"accuracy": 0.5}
    assert not {"confusion", "per_class", "labels"} & many.detail.keys()
    assert "f1_macro" in few.statistics
    assert "confusion" in few.detail
    assert "mcc" in score({"m": rows}, [Classification(show=("mcc",))])["m"].statistics
    usual = Classification(show=("accuracy", "f1_macro"))
    assert "f1_macro" in score({"m": rows}, [usual])["m"].statistics
    assert digest(identity(usual, str)) != digest(identity(Classification(), str)), "what is told is not what was told"
    again = Classification.model_validate(Classification().model_dump())
    assert score({"m": rows}, [again])["m"].statistics.keys() == many.statistics.keys()


def test_perplexity_weighs_tokens_not_rows():
    assert metrics.perplexity([6.0, 1.0], [2, 5]).point() == pytest.approx(math.exp(7 / 7))


def test_macro_f1_of_weighted_rows_is_scikit_learns_on_the_repeated_rows():
    truth, guess = noisy(60, 0.5, seed=1, classes=12)
    rng = np.random.default_rng(2)
    weights = np.stack([np.bincount(rng.integers(0, 60, 60), minlength=60) for _ in range(20)]).astype(float)
    ours = metrics.f1_macro(truth, guess).of(weights)
    for draw, value in zip(weights, ours, strict=True):
        rows = np.repeat(np.arange(60), draw.astype(int))
        sampled = [truth[i] for i in rows], [guess[i] for i in rows]
        assert value == pytest.approx(f1_score(*sampled, average="macro", zero_division=0))


def test_bootstrap_of_a_mean_matches_its_closed_form():
    values = np.random.default_rng(3).normal(2.0, 1.5, 400)
    found = interval(mean(values), samples=20_000, seed=4)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_bootstrap_interval_matches_scipy():
    truth, guess = noisy(300, 0.6, seed=5)
    right = np.array([t == g for t, g in zip(truth, guess, strict=True)], dtype=float)
    ours = interval(metrics.accuracy(truth, guess), samples=20_000, seed=6)
    theirs = stats.bootstrap((right,), np.mean, n_resamples=20_000, method="percentile", rng=7).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_bootstrap_is_decided_by_its_seed():
    statistic = metrics.accuracy(TRUTH, GUESS)
    assert interval(statistic, 500, seed=1) == interval(statistic, 500, seed=1)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(8)
    covered = 0
    for trial in range(300):
        found = interval(mean(rng.random(150) < 0.8), samples=400, seed=trial)
        covered += found.low <= 0.8 <= found.high
    assert 0.90 <= covered / 300 <= 0.985


def test_paired_difference_is_tighter_than_two_separate_intervals():
    truth, guess = noisy(500, 0.7, seed=9)
    better = [t if i % 20 == 0 else g for i, (t, g) in enumerate(zip(truth, guess, strict=True))]
    model, baseline = metrics.accuracy(truth, better), metrics.accuracy(truth, guess)
    paired = bootstrap.difference(model, baseline, seed=10)
    alone = interval(model, seed=10)
    assert paired.value == pytest.approx(model.point() - baseline.point())
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_paired_difference_of_means_matches_the_closed_form():
    rng = np.random.default_rng(11)
    left = rng.normal(0, 1, 600)
    right = left + rng.normal(0.1, 0.3, 600)
    found = bootstrap.difference(mean(right), mean(left), samples=20_000, seed=12)
    gap = right - left
    half = 1.96 * gap.std() / math.sqrt(len(gap))
    assert (found.low, found.high) == pytest.approx((gap.mean() - half, gap.mean() + half), abs=0.004)


@pytest.mark.parametrize(("won", "lost"), [(3, 9), (10, 10), (0, 5), (0, 0), (40, 21)])
def test_mcnemar_is_twice_the_smaller_binomial_tail(won: int, lost: int):
    right = np.array([True] * won + [False] * lost + [True] * 7 + [False] * 3)
    baseline = np.array([False] * won + [True] * lost + [True] * 7 + [False] * 3)
    total = won + lost
    tail = sum(math.comb(total, k) for k in range(min(won, lost) + 1)) / 2**total
    assert bootstrap.mcnemar(right, baseline) == pytest.approx(min(1.0, 2 * tail))


def test_permutation_agrees_with_all_swaps_enumerated():
    truth, one, two = TRUTH, GUESS, ["cat", "cat", "cat", "dog", "owl", "owl", "owl", "owl"]
    labels = metrics.label_set([*truth, *one], two)
    seen = abs(f1_score(truth, one, average="macro") - f1_score(truth, two, average="macro"))
    extreme = 0
    for mask in range(2**8):
        swap = [mask >> i & 1 for i in range(8)]
        left = [b if s else a for a, b, s in zip(one, two, swap, strict=True)]
        right = [a if s else b for a, b, s in zip(one, two, swap, strict=True)]
        gap = f1_score(truth, left, average="macro") - f1_score(truth, right, average="macro")
        extreme += abs(gap) >= seen - 1e-12
    scores = metrics.f1_macro(truth, one, labels), metrics.f1_macro(truth, two, labels)
    assert bootstrap.permutation(*scores, samples=20_000, seed=13) == pytest.approx(extreme / 2**8, abs=0.015)


def test_permutation_rejects_equal_models_as_often_as_its_level_says():
    small = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        one, two = (mean(rng.random(200) < 0.6) for _ in range(2))
        small += bootstrap.permutation(one, two, samples=200, seed=trial) <= 0.2
    assert 0.12 <= small / 300 <= 0.26


def test_unequal_rows_cannot_be_paired():
    with pytest.raises(ValueError, match="same rows"):
        bootstrap.difference(mean([1.0, 2.0]), mean([1.0]))
