"""Whether two models differ: tests and intervals of their difference on the same resampled rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from tilth.data.bootstrap import Interval, Statistic, blocks, percentiles, resamples


def difference(model: Statistic, baseline: Statistic, samples: int = 2000, seed: int = 0) -> Interval:
    """Interval of model − baseline, both scored on the same resampled rows (paired bootstrap, Koehn 2004).

    Row i of both statistics must be the same row of the data.
    """
    _same_rows(len(model), len(baseline))
    draws = [model.of(weights) - baseline.of(weights) for weights in resamples(len(model), samples, seed)]
    return percentiles(model.point() - baseline.point(), np.concatenate(draws))


def mcnemar(right: Any, baseline_right: Any) -> float:
    """Two-sided p of equal accuracy on the same rows: the exact McNemar test (McNemar 1947, Dietterich 1998).

    Only rows that one model gets right and the other wrong count; under equality each is a fair coin.
    right, baseline_right: booleans (rows,).
    """
    right, baseline_right = np.asarray(right, dtype=bool), np.asarray(baseline_right, dtype=bool)
    _same_rows(len(right), len(baseline_right))
    won, lost = int((right & ~baseline_right).sum()), int((~right & baseline_right).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def permutation(model: Statistic, baseline: Statistic, samples: int = 2000, seed: int = 0) -> float:
    """Two-sided p of equal scores by approximate randomisation (Noreen 1989; Yeh 2000 for F1).

    Each draw swaps the two models' outputs on every row with probability one half. The +1 counts the labelling
    seen, so that p is never 0 and the test keeps its level (Phipson & Smyth 2010).
    """
    _same_rows(len(model), len(baseline))
    ones = np.ones((1, len(model)))
    seen = abs(model.point() - baseline.point())
    rng = np.random.default_rng(seed)
    extreme = 0
    for count in blocks(len(model), samples):
        swap = rng.integers(0, 2, size=(count, len(model))).astype(np.float64)
        moved = np.asarray(swap @ (baseline.terms - model.terms))
        swapped = model.value(np.asarray(ones @ model.terms) + moved)
        other = baseline.value(np.asarray(ones @ baseline.terms) - moved)
        extreme += int((np.abs(swapped - other) >= seen - 1e-12).sum())
    return (extreme + 1) / (samples + 1)


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number, in the order given (Holm 1979): the chance of any false one is kept."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    found, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        found[place] = highest
    return found


def _same_rows(left: int, right: int) -> None:
    if left != right:
        raise ValueError(f"a paired comparison needs the same rows: {left} and {right} were given")
