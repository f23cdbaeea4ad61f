"""How sure a score is: intervals from resampled rows.

A score here is a function of sums over rows: accuracy of Σ right, perplexity of Σ nll and Σ tokens. A `Statistic` holds
the rows' terms and that function, so that thousands of resamples are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

Floats = NDArray[np.float64]
_CELLS = 4_000_000  # numbers of one block of draws: 32 MB
_ROWS = 4096  # rows scored one by one at a time


@dataclass(frozen=True)
class Statistic:
    """A score of weighted rows: `value(weights @ terms)`.

    terms: (rows, k), dense or scipy.sparse; value: sums (draws, k) → scores (draws,).
    """

    terms: Any
    value: Callable[[Floats], Floats]

    def __len__(self) -> int:
        return int(self.terms.shape[0])

    def of(self, weights: Floats) -> Floats:
        """One score for each row of `weights` (draws, rows): how often every row counts in that draw."""
        return self.value(np.asarray(weights @ self.terms))

    def point(self) -> float:
        """The score with every row counted once."""
        return float(self.of(np.ones((1, len(self))))[0])

    def each(self) -> Floats:
        """The score of every row by itself (rows,)."""
        parts = (self.terms[start : start + _ROWS] for start in range(0, len(self), _ROWS))
        return np.concatenate([self.value(part.toarray() if issparse(part) else part) for part in parts])

    @property
    def right(self) -> Floats | None:
        """Which rows are right (rows,), where the score is the mean of zeros and ones; None elsewhere."""
        if issparse(self.terms) or self.terms.shape[1] != 2 or not (self.terms[:, 1] == 1).all():
            return None
        values: Floats = self.terms[:, 0]
        return values if np.isin(values, (0.0, 1.0)).all() else None


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % interval."""

    value: float
    low: float
    high: float


def mean(values: Any) -> Statistic:
    """The mean of one number for each row."""
    terms = np.column_stack([np.asarray(values, dtype=np.float64), np.ones(len(values))])
    return Statistic(terms, lambda sums: sums[:, 0] / sums[:, 1])


def correlation(one: Floats, other: Floats) -> Statistic:
    """Pearson's correlation of two numbers, of which every row has several pairs: (rows, pairs) each.

    A draw in which either does not vary has the correlation 0.
    """
    x, y = one - one.mean(), other - other.mean()  # about the means no sum loses its last digits
    each = (np.ones_like(x), x, y, x * x, y * y, x * y)

    def value(sums: Floats) -> Floats:
        n, sx, sy, sxx, syy, sxy = sums.T
        spread = np.sqrt(np.maximum(n * sxx - sx**2, 0) * np.maximum(n * syy - sy**2, 0))
        found: Floats = np.divide(n * sxy - sx * sy, spread, out=np.zeros_like(n), where=spread > 0)
        return found

    return Statistic(np.column_stack([part.sum(axis=1) for part in each]), value)


def interval(statistic: Statistic, samples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap over rows (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13)."""
    return percentiles(statistic.point(), drawn(statistic, samples, seed))


def drawn(statistic: Statistic, samples: int, seed: int) -> Floats:
    """The score of each draw of rows (samples,); sums of many terms are made of few draws at a time."""
    wide = max(1, _CELLS // int(statistic.terms.shape[1]))
    found = (
        statistic.of(weights[start : start + wide])
        for weights in resamples(len(statistic), samples, seed)
        for start in range(0, len(weights), wide)
    )
    return np.concatenate(list(found))


def percentiles(value: float, draws: Floats) -> Interval:
    """The 95 % interval of a score from its draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def resamples(rows: int, samples: int, seed: int) -> Iterator[Floats]:
    """Blocks (draws, rows) of how often each row is drawn when `rows` rows are drawn with replacement."""
    rng = np.random.default_rng(seed)
    for count in blocks(rows, samples):
        drawn = rng.integers(0, rows, size=(count, rows)) + np.arange(count)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float64)


def blocks(rows: int, samples: int) -> Iterator[int]:
    """Sizes of blocks of draws that bound memory."""
    size = max(1, _CELLS // max(rows, 1))
    for start in range(0, samples, size):
        yield min(size, samples - start)
