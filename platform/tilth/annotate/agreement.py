"""How far people agree: labels and marks of several people on the same items.

Labels are an array (items, people) of small whole numbers, marks one of floats; what somebody did not judge is -1
or NaN. A figure that cannot be told, as where all say the same or no item has two answers, is None.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Marks = NDArray[np.float64]
NONE = -1
#: EM steps, and by how much unseen answers are smoothed
STEPS, SMOOTHING = 100, 0.1


def cohen(labels: Labels, weights: Literal["quadratic"] | None = None) -> float | None:
    """Mean of Cohen's kappa over all pairs of people, each by the items that both judged (Cohen 1960).

    With weights labels are steps, and two that are further apart differ more, also where nobody took one between.
    """
    from sklearn.metrics import cohen_kappa_score

    found: list[tuple[float, int]] = []
    names = sorted(set(labels[labels >= 0].tolist()))
    names = list(range(names[0], names[-1] + 1)) if weights and names else names
    for left, right in _pairs(labels, labels >= 0):
        if len(set(left) | set(right)) > 1:
            found.append((float(cohen_kappa_score(left, right, labels=names, weights=weights)), len(left)))
    return _weighted(found)


def pearson(marks: Marks) -> float | None:
    """Mean correlation over all pairs of people, each by the items that both judged; three at least."""
    found: list[tuple[float, int]] = []
    for left, right in _pairs(marks, ~np.isnan(marks)):
        if (value := correlation(left, right)) is not None:
            found.append((value, len(left)))
    return _weighted(found)


def correlation(left: Marks, right: Marks) -> float | None:
    """Pearson's; None for fewer than three points or where one side never changes."""
    if len(left) < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def _pairs(values: NDArray[Any], given: NDArray[np.bool_]) -> Iterator[tuple[Any, Any]]:
    for one, other in combinations(range(values.shape[1]), 2):
        both = given[:, one] & given[:, other]
        if both.any():
            yield values[both, one], values[both, other]


def _weighted(found: list[tuple[float, int]]) -> float | None:
    """The mean of values by their weights."""
    known = [(value, weight) for value, weight in found if math.isfinite(value)]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def fleiss(labels: Labels) -> float | None:
    """Fleiss' kappa (1971) over the items with two answers or more, whose number may differ from item to item."""
    counts = _counts(labels)
    people = counts.sum(axis=1)
    counts, people = counts[people > 1], people[people > 1]
    if not len(counts):
        return None
    alike = ((counts**2).sum(axis=1) - people) / (people * (people - 1))
    chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return None if chance == 1 else (float(alike.mean()) - chance) / (1 - chance)


def _counts(labels: Labels) -> Marks:
    """How many people gave each label to each item."""
    names = range(int(labels.max(initial=0)) + 1)
    return np.stack([(labels == name).sum(axis=1) for name in names], axis=1).astype(np.float64)


def alpha(marks: Marks, level: Literal["nominal", "interval"]) -> float | None:
    """Krippendorff's alpha (2004) of marks (items, people), NaN where there is none."""
    import krippendorff

    shared = marks[(~np.isnan(marks)).sum(axis=1) > 1]
    if not len(shared) or len(np.unique(shared[~np.isnan(shared)])) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        value = float(krippendorff.alpha(reliability_data=shared.T, level_of_measurement=level))
    return value if math.isfinite(value) else None


def competence(labels: Labels, shown: Labels, classes: int) -> tuple[Marks, Marks]:
    """MACE (Hovy et al. 2013): how far each person can be trusted, and the probability of each label of each item.

    Who answers either knows the label, or does what they always do. What somebody always does shows in `shown`, the
    side or place that was clicked, and not in the label: sides are drawn anew for each person and item, so that who
    always clicks A is told from who always likes the same model. Both are (items, people), -1 where not judged.
    Returns (people,) in 0 to 1 and (items, classes). The expectation is maximised from one half for everybody, so
    that the same answers give the same figures.
    """
    said, clicked = (np.stack([of == name for name in range(classes)], axis=2).astype(float) for of in (labels, shown))
    given = (labels >= 0).astype(np.float64)
    # what one person alone judged says nothing of them
    shared = given * (given.sum(axis=1, keepdims=True) > 1)
    known, habit = np.full(labels.shape[1], 0.5), np.full((labels.shape[1], classes), 1 / classes)
    truth = np.full((len(labels), classes), 1 / classes)
    for _ in range(STEPS):
        guess = (1 - known) * np.einsum("ijk,jk->ij", clicked, habit)
        each = np.maximum(said * known[None, :, None] + guess[:, :, None], 1e-12)
        log = (np.log(each) * given[:, :, None]).sum(axis=1)
        truth = np.exp(log - log.max(axis=1, keepdims=True))
        truth /= truth.sum(axis=1, keepdims=True)
        # how likely each answer was known, not given out of habit
        sure = shared * np.einsum("ik,ijk->ij", truth, said) * known / np.maximum(known + guess, 1e-12)
        strayed = np.einsum("ij,ijk->jk", shared - sure, clicked) + SMOOTHING
        known = (sure.sum(axis=0) + SMOOTHING) / (shared.sum(axis=0) + 2 * SMOOTHING)
        habit = strayed / strayed.sum(axis=1, keepdims=True)
    return known, truth


def standardised(marks: Marks) -> Marks:
    """Each person's marks less their mean, by their standard deviation (WMT); 0 where all are the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean, spread = np.nanmean(marks, axis=0), np.nanstd(marks, axis=0)
    centred: Marks = (marks - mean) / np.where(spread > 0, spread, 1.0)
    return centred
