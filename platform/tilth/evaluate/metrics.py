"""Scores on NumPy arrays: classification tables by scikit-learn, and statistics that can be resampled fast.

Macro F1 is a function of the true and false positives of each class, perplexity of Σ nll and Σ tokens; see
`tilth.data.bootstrap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from tilth.data.bootstrap import Floats, Statistic, mean

Labels = Sequence[str]


def accuracy(truth: Labels, predicted: Labels) -> Statistic:
    """Share of rows whose predicted label is the true one."""
    return mean(np.asarray(truth, dtype=object) == np.asarray(predicted, dtype=object))


def perplexity(nll: Sequence[float], tokens: Sequence[int]) -> Statistic:
    """exp(Σ nll / Σ tokens): nll is each row's summed negative log-likelihood in nats over its `tokens`.

    Long rows weigh more, as they hold more tokens; the mean of per-row perplexities would be another number.
    """
    terms = np.column_stack([np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)])
    return Statistic(terms, lambda sums: np.exp(sums[:, 0] / sums[:, 1]))


def f1_macro(truth: Labels, predicted: Labels, labels: Labels | None = None) -> Statistic:
    """Mean over classes of F1 = 2 tp / (2 tp + fp + fn); a class that a draw neither holds nor predicts is left out.

    That is scikit-learn's rule for `average="macro"` with the labels taken from the data of the draw. Give the
    union of two models' `labels` to make their terms comparable column by column.
    """
    columns = {label: column for column, label in enumerate(labels or label_set(truth, predicted))}
    is_true, is_predicted = _one_hot(truth, columns), _one_hot(predicted, columns)
    terms = sparse.hstack([is_true.multiply(is_predicted), is_true + is_predicted], format="csr")

    def score(sums: Floats) -> Floats:
        hits, either = np.split(sums, 2, axis=1)  # either = 2 tp + fp + fn
        present = either > 0
        each = np.divide(2 * hits, either, out=np.zeros_like(hits), where=present)
        scores: Floats = each.sum(axis=1) / present.sum(axis=1)
        return scores

    return Statistic(terms, score)


def _one_hot(values: Labels, columns: dict[str, int]) -> Any:
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
    given = confusion(truth, predicted, labels).sum(axis=0)
    names = ("precision", "recall", "f1", "support", "predicted")
    columns = zip(*(column.tolist() for column in (*scores, given)), strict=True)
    return [{"label": label, **dict(zip(names, row, strict=True))} for label, row in zip(labels, columns, strict=True)]


def confusion(truth: Labels, predicted: Labels, labels: Labels) -> NDArray[np.int64]:
    """Counts (labels, labels): a row for each true label, a column for each predicted one."""
    matrix: NDArray[np.int64] = confusion_matrix(truth, predicted, labels=list(labels))
    return matrix
