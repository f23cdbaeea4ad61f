"""Ratings of several models from comparisons of two: Bradley-Terry on Elo's scale, and win rates at equal length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.special import expit

from tilth.data.bootstrap import Floats, Statistic

#: a comparison: row, first model, second model, the first one's share of a win
Won = tuple[int, str, str, float]
#: of each opponent a model has won and lost so much beforehand, so that one that never wins has a rating too
_PRIOR = 0.5
_ROUNDS, _NEWTON = 500, 30
#: the last step of a fit, in natural logarithms of strength
_TOLERANCE = 1e-8


def elo(comparisons: Sequence[Won], models: Sequence[str], rows: int) -> dict[str, Statistic]:
    """Bradley-Terry strengths (1952) as 1000 + 400 log10 of them over their geometric mean; ties are half a win.

    The most likely ones, found by Newton's method. What is resampled are rows with all their comparisons.
    """
    size = len(models)
    columns = {model: place for place, model in enumerate(models)}
    terms = np.zeros((rows, size * size))
    for row, one, other, share in comparisons:
        a, b = columns[one], columns[other]
        terms[row, a * size + b] += share
        terms[row, b * size + a] += 1 - share

    def value(place: int) -> Statistic:
        return Statistic(terms, lambda sums: ratings(sums.reshape(-1, size, size))[:, place])

    return {model: value(place) for model, place in columns.items()}


def ratings(wins: Floats, prior: float = _PRIOR) -> Floats:
    """Elo ratings (draws, models) from wins (draws, models, models) of the row's model over the column's."""
    wins = wins + prior * (1 - np.eye(wins.shape[-1]))
    games = wins + wins.transpose(0, 2, 1)
    logs = np.zeros(wins.shape[:2])
    for _ in range(_ROUNDS):
        step = _step(wins, games, logs)
        far = np.ptp(step, axis=1, keepdims=True)
        # of a full step so much as surely makes the wins more likely (Sun and Tran-Dinh 2019, arXiv:1703.04599)
        logs += step * np.divide(np.log1p(far), far, out=np.ones_like(far), where=far > 0)
        if far.max(initial=0) < _TOLERANCE:
            break
    scaled: Floats = 1000 + 400 / np.log(10) * (logs - logs.mean(axis=1, keepdims=True))
    return scaled


def _step(wins: Floats, games: Floats, logs: Floats) -> Floats:
    """Newton's step of the logarithms of strength; it sums to 0, as only their differences are known."""
    share = expit(logs[:, :, None] - logs[:, None, :])
    slope = (wins - games * share).sum(axis=2)
    bend = games * share * (1 - share)
    size = logs.shape[1]
    matrix = bend.sum(axis=2)[:, :, None] * np.eye(size) - bend * (1 - np.eye(size)) + 1 / size
    found: Floats = np.linalg.solve(matrix, slope[:, :, None])[:, :, 0]
    return found


def length_controlled(shares: Sequence[float], lengths: Sequence[float], others: Sequence[float]) -> Statistic:
    """The win rate that a logistic model foresees for answers as long as the baseline's.

    Dubois et al. 2024, arXiv:2404.04475: logit P(win) = θ + φ tanh(Δ / std Δ), Δ the difference in length; the rate is
    that at Δ = 0. Their term for the difficulty of each instruction is left out: it takes many models to be known.
    """
    won = np.asarray(shares, dtype=np.float64)
    apart = np.asarray(lengths, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    spread = apart.std()
    longer = np.tanh(apart / spread) if spread > 0 else np.zeros_like(apart)
    design = np.column_stack([np.ones_like(longer), longer])

    def value(weights: Floats) -> Floats:
        return np.array([expit(_logistic(design, won, line)[0]) for line in weights])

    # not a function of sums: it is given every row's weight
    return Statistic(sparse.eye_array(len(won), format="csr"), value)


def _logistic(design: Floats, won: Floats, weights: Floats, ridge: float = 1e-3) -> Floats:
    """Coefficients of a weighted logistic regression by Newton's method; a trace of ridge keeps them finite."""
    found = np.zeros(design.shape[1])
    for _ in range(_NEWTON):
        share = expit(design @ found)
        slope = design.T @ (weights * (won - share)) - ridge * found
        bend = (design * (weights * share * (1 - share))[:, None]).T @ design + ridge * np.eye(len(found))
        step = np.linalg.solve(bend, slope)
        found = found + np.clip(step, -4, 4)
        if np.abs(step).max() < 1e-10:
            break
    return found
