"""Scores on NumPy arrays: classification tables by scikit-learn, and statistics that can be resampled fast.

Macro F1 is a function of the true and false positives of each class, perplexity of Σ nll and Σ tokens; see
`tilth.data.bootstrap`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from tilth.data.bootstrap import Floats, Statistic, mean

Labels = Sequence[str]


@dataclass(frozen=True)
class Partial(Statistic):
    """A score that some rows have none of: `defined` says which sums have one, `value` gives the others chance's."""

    defined: Callable[[Floats], NDArray[np.bool_]]

    @property
    def known(self) -> bool:
        """Whether all rows together have a score."""
        return bool(self.defined(np.asarray(np.ones((1, len(self))) @ self.terms))[0])


def accuracy(truth: Labels, predicted: Labels) -> Statistic:
    """Share of rows whose predicted label is the true one."""
    return mean(np.asarray(truth, dtype=object) == np.asarray(predicted, dtype=object))


def perplexity(nll: Sequence[float], tokens: Sequence[int]) -> Statistic:
    """exp(Σ nll / Σ tokens): nll is each row's summed negative log-likelihood in nats over its `tokens`.

    Long rows weigh more, as they hold more tokens; the mean of per-row perplexities would be another number.
    """
    terms = np.column_stack([np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)])
    return Statistic(terms, lambda sums: np.exp(sums[:, 0] / sums[:, 1]))


def bits_per_byte(nll: Sequence[float], size: Sequence[int]) -> Statistic:
    """Σ nll / (ln 2 · Σ bytes): nll in nats of each row over its UTF-8 bytes, whatever its tokens are."""
    terms = np.column_stack([np.asarray(nll, dtype=np.float64), np.asarray(size, dtype=np.float64)])
    return Statistic(terms, lambda sums: sums[:, 0] / (np.log(2) * sums[:, 1]))


def f1_macro(truth: Labels, predicted: Labels, labels: Labels | None = None) -> Statistic:
    """Mean over classes of F1 = 2 tp / (2 tp + fp + fn), see `by_class`."""
    return by_class("f1_macro", truth, predicted, labels or label_set(truth, predicted))


def by_class(name: str, truth: Labels, predicted: Labels, labels: Labels) -> Statistic:
    """f1_macro, precision_macro, recall_macro or mcc; a class that a draw neither holds nor predicts is left out.

    That is scikit-learn's rule for `average="macro"` with the labels taken from the data of the draw. Give the
    union of two models' `labels` to make their terms comparable column by column.
    """
    columns = {label: column for column, label in enumerate(labels)}
    is_true, is_predicted = _one_hot(truth, columns), _one_hot(predicted, columns)
    terms = sparse.hstack([is_true.multiply(is_predicted), is_true, is_predicted], format="csr")
    if name == "mcc":
        return Partial(terms, lambda sums: _mcc(*np.split(sums, 3, axis=1)), _two_true)
    score = _MACRO[name]
    return Statistic(terms, lambda sums: score(*np.split(sums, 3, axis=1)))


def _two_true(sums: Floats) -> NDArray[np.bool_]:
    """Whether more than one class is true: what is predicted of one class alone goes with nothing."""
    found: NDArray[np.bool_] = (np.split(sums, 3, axis=1)[1] > 0).sum(axis=1) > 1
    return found


def _macro(hits: Floats, below: Floats, present: NDArray[np.bool_]) -> Floats:
    each = np.divide(hits, below, out=np.zeros_like(hits), where=below > 0)
    scores: Floats = each.sum(axis=1) / present.sum(axis=1)
    return scores


_MACRO: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "f1_macro": lambda hits, true, said: _macro(2 * hits, true + said, true + said > 0),
    "precision_macro": lambda hits, true, said: _macro(hits, said, true + said > 0),
    "recall_macro": lambda hits, true, said: _macro(hits, true, true + said > 0),
}


def _mcc(hits: Floats, true: Floats, said: Floats) -> Floats:
    """Covariance over both deviations (Gorodkin 2004), 0 where one side holds a single class."""
    rows = true.sum(axis=1)
    covariance = hits.sum(axis=1) * rows - (true * said).sum(axis=1)
    spread = (rows**2 - (true**2).sum(axis=1)) * (rows**2 - (said**2).sum(axis=1))
    found: Floats = np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)
    return found


def auc(positive: Sequence[bool], scores: Sequence[float], ranks: Sequence[float]) -> Statistic:
    """Chance that a positive row has a higher score than another one, ties half; 0.5 for a draw of one kind alone.

    `ranks` are all different scores, ascending, of every model that this one is compared with.
    """
    columns = {score: column for column, score in enumerate(ranks)}
    at = _one_hot(scores, columns)
    is_positive = np.asarray(positive, dtype=np.float64)[:, None]
    terms = sparse.hstack([at.multiply(is_positive), at.multiply(1 - is_positive)], format="csr")

    def value(sums: Floats) -> Floats:
        above, below = np.split(sums, 2, axis=1)
        won = (above * (below.cumsum(axis=1) - below / 2)).sum(axis=1)
        pairs = above.sum(axis=1) * below.sum(axis=1)
        found: Floats = np.divide(won, pairs, out=np.full_like(won, 0.5), where=pairs > 0)
        return found

    def both(sums: Floats) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.all([part.sum(axis=1) > 0 for part in np.split(sums, 2, axis=1)], axis=0)
        return found

    return Partial(terms, value, both)


def auc_ovr(truth: Labels, scores: Mapping[str, Floats], labels: Labels) -> dict[str, Statistic]:
    """For each model the mean over `labels` of the area under the curve of one label against all others, ties half.

    scores: model → (rows, labels). A label that a draw lacks, or that all of its rows have, is left out of the mean.
    """
    truths = np.tile(np.asarray(truth, dtype=object), len(scores))
    stacked = np.concatenate(list(scores.values()))
    curves = [_Curve.of(truths == label, stacked[:, column]) for column, label in enumerate(labels)]

    def value(sums: Floats) -> Floats:
        return _mean_known([curve.area(sums) for curve in curves])

    def several(sums: Floats) -> NDArray[np.bool_]:
        held = [sums[:, truths == label].sum(axis=1) > 0 for label in labels]
        found: NDArray[np.bool_] = np.sum(held, axis=0) > 1
        return found

    # a term for each row of each model: areas are no sums over rows, but follow from how often each row counts
    each, nothing = sparse.eye_array(len(truth)), sparse.csr_array((len(truth), len(truth)))
    parts = {model: [each if own == model else nothing for own in scores] for model in scores}
    return {model: Partial(sparse.hstack(part, format="csr"), value, several) for model, part in parts.items()}


@dataclass(frozen=True)
class _Curve:
    """Rows in the order of their scores, the first row of each score, and which rows are positive."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    positive: NDArray[np.bool_]

    @staticmethod
    def of(positive: NDArray[np.bool_], scores: Floats) -> _Curve:
        order = np.argsort(scores, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
        return _Curve(order, starts, positive[order])

    def area(self, weights: Floats) -> Floats:
        """The area for each line of `weights` (draws, rows); no number where one kind of rows is missing."""
        counts, kinds = weights[:, self.order], (self.positive, ~self.positive)
        above, below = (np.add.reduceat(counts * kind, self.starts, axis=1) for kind in kinds)
        won = (above * (below.cumsum(axis=1) - below / 2)).sum(axis=1)
        pairs = above.sum(axis=1) * below.sum(axis=1)
        found: Floats = np.divide(won, pairs, out=np.full_like(won, np.nan), where=pairs > 0)
        return found


def _mean_known(areas: Sequence[Floats]) -> Floats:
    """The mean of what is a number in each place; 0.5 where nothing is."""
    every = np.stack(areas)
    known = ~np.isnan(every)
    total, count = np.where(known, every, 0).sum(axis=0), known.sum(axis=0)
    found: Floats = np.divide(total, count, out=np.full_like(total, 0.5), where=count > 0)
    return found


def calibration(right: Sequence[bool], confidence: Sequence[float], bins: int) -> Statistic:
    """Expected calibration error: Σ over bins of |right − confidence|, by the number of rows; bins are (low, high]."""
    sure = np.asarray(confidence, dtype=np.float64)
    place = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    terms = np.zeros((len(sure), bins + 1))
    terms[np.arange(len(sure)), place] = np.asarray(right, dtype=np.float64) - sure
    terms[:, -1] = 1
    return Statistic(terms, lambda sums: np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1])


def _one_hot(values: Sequence[Any], columns: Mapping[Any, int]) -> Any:
    places = (np.arange(len(values)), np.array([columns[value] for value in values], dtype=np.int64))
    return sparse.csr_array((np.ones(len(values)), places), shape=(len(values), len(columns)))


def label_set(truth: Labels, predicted: Labels) -> list[str]:
    """Every label that is true or predicted somewhere, sorted."""
    return sorted({*truth, *predicted})


def averages(truth: Labels, predicted: Labels) -> dict[str, float]:
    """Precision, recall and F1, macro and micro; a class never predicted has precision 0."""
    found: dict[str, float] = {}
    for average in ("macro", "micro"):
        scores = precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)
        found |= {f"{n}_{average}": float(s) for n, s in zip(("precision", "recall", "f1"), scores, strict=False)}
    return found


def per_class(truth: Labels, predicted: Labels) -> list[dict[str, Any]]:
    """One row for each class: label, precision, recall, f1, support (true rows), predicted (rows given it)."""
    labels = label_set(truth, predicted)
    scores = precision_recall_fscore_support(truth, predicted, labels=labels, average=None, zero_division=0)
    given = Counter(predicted)
    names = ("precision", "recall", "f1", "support", "predicted")
    columns = zip(*(column.tolist() for column in scores), [given[label] for label in labels], strict=True)
    return [{"label": label, **dict(zip(names, row, strict=True))} for label, row in zip(labels, columns, strict=True)]


def confusion(truth: Labels, predicted: Labels, labels: Labels) -> NDArray[np.int64]:
    """Counts (labels, labels): a row for each true label, a column for each predicted one."""
    matrix: NDArray[np.int64] = confusion_matrix(truth, predicted, labels=list(labels))
    return matrix
