"""How far judges agree with people and among themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

Verdict = Mapping[Any, float]  # what was compared → the first one's share of a win


def kappa(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Cohen's kappa (1960) of two raters' outcomes of the same pairs; None where chance leaves nothing to agree on."""
    from sklearn.metrics import cohen_kappa_score

    if not one or len({*one, *other}) < 2:
        return None
    return float(cohen_kappa_score([str(value) for value in one], [str(value) for value in other]))


def agree(one: Verdict, other: Verdict) -> dict[str, Any]:
    """Pairs that both judged, the share on which they say the same, and kappa."""
    shared = [key for key in one if key in other]
    left, right = [one[key] for key in shared], [other[key] for key in shared]
    same = float(np.mean(np.array(left) == np.array(right))) if shared else None
    return {"pairs": len(shared), "same": same, "kappa": kappa(left, right)}


def among(raters: Sequence[Verdict]) -> dict[str, Any]:
    """The same over all pairs of raters: pairs judged in all, and the means."""
    return averaged([agree(one, other) for one, other in combinations(raters, 2)])


def averaged(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several agreements as one: pairs in all, and the means of what is known; None where nothing is."""
    return {
        "pairs": sum(item["pairs"] for item in found),
        "same": _mean([item["same"] for item in found]),
        "kappa": _mean([item["kappa"] for item in found]),
    }


def spearman(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Spearman's rank correlation with its p; None where one side is constant."""
    from scipy.stats import spearmanr

    if len(one) < 3 or len(set(one)) < 2 or len(set(other)) < 2:
        return {"n": len(one), "rho": None, "p": None}
    found = spearmanr(one, other)
    return {"n": len(one), "rho": float(found.statistic), "p": float(found.pvalue)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
