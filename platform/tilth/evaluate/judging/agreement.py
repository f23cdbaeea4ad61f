"""How far judges agree with people and among themselves, with intervals over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from tilth.data.agreement import Of, by_group, of_pairs, rank_correlation, spread
from tilth.data.bootstrap import Statistic
from tilth.evaluate.judging.people import Outcomes, Pair

#: the end points of a figure that is a function of rows
Ends = Callable[[Statistic], tuple[float, float] | tuple[None, None]]


def kappa(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Cohen's kappa (1960) of two raters' outcomes of the same pairs; None where chance leaves nothing to agree on."""
    from sklearn.metrics import cohen_kappa_score

    if not one or len({*one, *other}) < 2:
        return None
    return float(cohen_kappa_score([str(value) for value in one], [str(value) for value in other]))


def agree(twos: Sequence[tuple[Outcomes, Outcomes]], ends: Ends = spread) -> dict[str, Any]:
    """Of each two raters the share of pairs on which they say the same, and kappa; the means where there are several.

    `pairs` is how many they judged together in all. Each figure has its ends, by rows drawn anew; None where nothing
    can be told.
    """
    told = [_told(one, other) for one, other in twos]
    found: dict[str, Any] = {"pairs": sum(pairs for pairs, *_ in told)}
    means = {"same": _mean([same for _, same, _ in told]), "kappa": _mean([value for *_, value in told])}
    tables = _table(twos) if found["pairs"] else None
    figures: dict[str, Of] = {"same": "same", "kappa": "nominal"}
    for name, of in figures.items():
        low, high = None, None
        if tables is not None and means[name] is not None:
            table, rows = tables
            columns = [(at, at + 1) for at in range(0, 2 * len(twos), 2)]
            low, high = ends(by_group(of_pairs(table, of, columns, weighted=False), rows))
        found |= {name: means[name], f"{name}_low": low, f"{name}_high": high}
    return found


def _told(one: Outcomes, other: Outcomes) -> tuple[int, float | None, float | None]:
    shared = [key for key in one if key in other]
    left, right = [one[key] for key in shared], [other[key] for key in shared]
    same = float(np.mean(np.array(left) == np.array(right))) if shared else None
    return len(shared), same, kappa(left, right)


def _table(twos: Sequence[tuple[Outcomes, Outcomes]]) -> tuple[Any, list[str]]:
    """The outcomes of every rater of every two (pairs, 2 × twos), and the row that each pair is of."""
    keys: list[Pair] = list(dict.fromkeys(key for two in twos for rater in two for key in rater))
    columns = [[rater.get(key, np.nan) for key in keys] for two in twos for rater in two]
    return np.array(columns, dtype=np.float64).T, [row for row, *_ in keys]


def among(raters: Sequence[Outcomes], ends: Ends = spread) -> dict[str, Any]:
    """The same over all pairs of raters."""
    return agree(list(combinations(raters, 2)), ends)


def spearman(one: Sequence[float], other: Sequence[float], rows: Sequence[str], ends: Ends = spread) -> dict[str, Any]:
    """Spearman's rank correlation with its ends and p; None where one side is constant. `rows`: of each pair.

    The p is of pairs that know nothing of each other, and is not told of several answers to one row.
    """
    from scipy.stats import spearmanr

    if len(one) < 3 or len(set(one)) < 2 or len(set(other)) < 2:
        return {"n": len(one), "rho": None, "low": None, "high": None, "p": None}
    found = spearmanr(one, other)
    low, high = ends(rank_correlation(np.array(one), np.array(other), rows))
    p = float(found.pvalue) if len(set(rows)) == len(rows) else None
    return {"n": len(one), "rho": float(found.statistic), "low": low, "high": high, "p": p}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
