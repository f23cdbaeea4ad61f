"""How sure figures of agreement are: kappas, alphas and correlations as statistics of items.

The figures themselves are told by libraries. Here each is a function of sums over items, so that it is known of
thousands of resampled ones: drawn with replacement they give intervals that hold, which formulas for few items or
missing answers do not (Zapf et al. 2016, BMC Medical Research Methodology 16:93).

A table is (items, raters), NaN where a rater gave nothing; a draw of which a figure cannot be told has NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix, identity

from tilth.data.bootstrap import Floats, Statistic, drawn

Of = Literal["same", "nominal", "quadratic", "correlation"]
Twos = Sequence[tuple[int, int]]


def of_pairs(table: Floats, of: Of, twos: Twos | None = None, weighted: bool = True) -> Statistic:
    """Mean over pairs of raters of a figure of two: share of the same answers, Cohen's kappa or Pearson's correlation.

    `nominal` is kappa of labels, `quadratic` of steps, where two that are further apart differ more (Cohen 1960, 1968).
    `twos`: columns that are held against each other, all pairs if none are named. A pair counts by the items that
    both judged, or, not weighted, as much as any other; a correlation wants three of them.
    """
    twos = list(combinations(range(table.shape[1]), 2)) if twos is None else list(twos)
    coded, classes = _coded(table) if of in ("same", "nominal") else (table - np.nanmean(table), 0)
    parts = _parts(of, classes)
    found = [_terms(coded[:, left], coded[:, right], of, classes) for left, right in twos]
    return Statistic(_beside(found, len(table), parts), lambda sums: _mean(sums, parts, of, weighted))


def fleiss(table: Floats) -> Statistic:
    """Fleiss' kappa (1971) over the items with two answers or more, whose number may differ from item to item."""
    counts = _shared_counts(table)
    people = counts.sum(axis=1)
    alike = ((counts**2).sum(axis=1) - people) / (people * (people - 1))

    def value(sums: Floats) -> Floats:
        each = sums[:, 2:] / sums[:, 2:].sum(axis=1, keepdims=True)
        chance = (each**2).sum(axis=1)
        return _ratio(sums[:, 1] / sums[:, 0] - chance, 1 - chance)

    return Statistic(np.column_stack([np.ones(len(counts)), alike, counts]), value)


def alpha(table: Floats, level: Literal["nominal", "interval"]) -> Statistic:
    """Krippendorff's alpha (2004) over the items with two answers or more, by labels or by distances squared."""
    if level == "nominal":
        each = _shared_counts(table)
        people = each.sum(axis=1)
        apart = people**2 - (each**2).sum(axis=1)
    else:
        kept = table[(~np.isnan(table)).sum(axis=1) > 1] - np.nanmean(table)
        people = (~np.isnan(kept)).sum(axis=1).astype(np.float64)
        each = np.column_stack([np.nansum(kept, axis=1), np.nansum(kept**2, axis=1)])
        apart = 2 * (people * each[:, 1] - each[:, 0] ** 2)

    def value(sums: Floats) -> Floats:
        n, seen, rest = sums[:, 0], sums[:, 1], sums[:, 2:]
        chance = n**2 - (rest**2).sum(axis=1) if level == "nominal" else 2 * (n * rest[:, 1] - rest[:, 0] ** 2)
        return 1 - _ratio(seen * (n - 1), np.where(chance > 1e-9, chance, 0.0))

    return Statistic(np.column_stack([people, apart / (people - 1), each]), value)


def rank_correlation(one: Floats, other: Floats, groups: Sequence[Any]) -> Statistic:
    """Spearman's rank correlation of pairs of numbers (pairs,), resampled by `groups`: pairs of one row go together."""
    mine, others = (np.unique(values, return_inverse=True)[1] for values in (one, other))

    def value(weights: Floats) -> Floats:
        x, y = (_ranks(weights, values) for values in (mine, others))
        total = weights.sum(axis=1, keepdims=True)
        x, y = (part - (weights * part).sum(axis=1, keepdims=True) / total for part in (x, y))
        spread = np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))
        return _ratio((weights * x * y).sum(axis=1), np.where(spread > 1e-9, spread, 0.0))

    return by_group(Statistic(identity(len(one), format="csr"), value), groups)


def _ranks(weights: Floats, places: Any) -> Floats:
    """The middle rank of every pair (draws, pairs) where each counts as often as it was drawn."""
    held = np.asarray(weights @ csr_matrix((np.ones(len(places)), (np.arange(len(places)), places))))
    middle = held.cumsum(axis=1) - held + (held + 1) / 2
    found: Floats = middle[:, places]
    return found


def by_group(statistic: Statistic, groups: Sequence[Any]) -> Statistic:
    """The same figure where all items of a group (items,) are drawn together, as several answers to one row."""
    names, places = np.unique(np.asarray([str(name) for name in groups]), return_inverse=True)
    member = csr_matrix((np.ones(len(places)), (places, np.arange(len(places)))), shape=(len(names), len(places)))
    return Statistic(member @ statistic.terms, statistic.value)


def spread(statistic: Statistic, samples: int = 1000, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval by resampled items (percentile bootstrap); None where most draws tell nothing."""
    if len(statistic) < 2:
        return None, None
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = drawn(statistic, samples, seed)
    known = draws[np.isfinite(draws)]
    if 2 * len(known) <= len(draws):
        return None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _coded(table: Floats) -> tuple[Floats, int]:
    """Labels as 0, 1, …, and how many there are."""
    given = ~np.isnan(table)
    names, places = np.unique(table[given], return_inverse=True)
    coded = np.full(table.shape, np.nan)
    coded[given] = places
    return coded, len(names)


def _shared_counts(table: Floats) -> Floats:
    """How often each label was given to each item that has two answers or more (items, labels)."""
    coded, classes = _coded(table[(~np.isnan(table)).sum(axis=1) > 1])
    counts = [(coded == name).sum(axis=1) for name in range(classes)]
    return np.stack(counts, axis=1).astype(np.float64) if counts else np.zeros((0, 0))


def _parts(of: Of, classes: int) -> int:
    return {"same": 2, "nominal": 2 + 2 * classes}.get(of, 6)


def _terms(left: Floats, right: Floats, of: Of, classes: int) -> tuple[Any, Floats]:
    """The items that two raters judged, and their terms (items, parts); the first says that they did."""
    both = np.flatnonzero(~np.isnan(left) & ~np.isnan(right))
    x, y = left[both], right[both]
    ones = np.ones(len(both))
    if of in ("same", "nominal"):
        hot = [values[:, None] == np.arange(classes) for values in (x, y)] if of == "nominal" else []
        return both, np.column_stack([ones, x == y, *hot]).astype(np.float64)
    return both, np.column_stack([ones, x, y, x * x, y * y, x * y])


def _beside(found: Sequence[tuple[Any, Floats]], items: int, parts: int) -> Any:
    """Terms of all pairs as one sparse table (items, pairs × parts): few raters judge the same item."""
    rows = [np.repeat(both, parts) for both, _ in found]
    columns = [np.tile(np.arange(parts), len(both)) + at * parts for at, (both, _) in enumerate(found)]
    values = [terms.ravel() for _, terms in found]
    if not found:
        return csr_matrix((items, parts))
    places = np.concatenate(rows), np.concatenate(columns)
    return csr_matrix((np.concatenate(values), places), shape=(items, len(found) * parts))


def _mean(sums: Floats, parts: int, of: Of, weighted: bool) -> Floats:
    each = sums.reshape(len(sums), -1, parts)
    figure = _FIGURES[of](each)
    weight = np.where(np.isnan(figure), 0.0, each[..., 0] if weighted else 1.0)
    return _ratio((np.nan_to_num(figure) * weight).sum(axis=1), weight.sum(axis=1))


def _same(each: Floats) -> Floats:
    return _ratio(each[..., 1], each[..., 0])


def _nominal(each: Floats) -> Floats:
    n, alike = each[..., 0], _same(each)
    left, right = np.split(each[..., 2:], 2, axis=-1)
    chance = _ratio((left * right).sum(axis=-1), n * n)
    return _ratio(alike - chance, np.where(chance < 1 - 1e-12, 1 - chance, 0.0))


def _quadratic(each: Floats) -> Floats:
    n, x, y, xx, yy, xy = np.moveaxis(each, -1, 0)
    chance = xx + yy - 2 * _ratio(x * y, n)
    return 1 - _ratio(xx + yy - 2 * xy, np.where(chance > 1e-9, chance, 0.0))


def _correlation(each: Floats) -> Floats:
    n, x, y, xx, yy, xy = np.moveaxis(each, -1, 0)
    varies, varied = n * xx - x * x, n * yy - y * y
    told = (n >= 3) & (varies > 1e-9) & (varied > 1e-9)
    return _ratio(n * xy - x * y, np.where(told, np.sqrt(np.abs(varies * varied)), 0.0))


_FIGURES: dict[Of, Callable[[Floats], Floats]] = {
    "same": _same, "nominal": _nominal, "quadratic": _quadratic, "correlation": _correlation,
}  # fmt: skip


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """top / bottom, NaN where that cannot be told."""
    found: Floats = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=np.asarray(bottom) != 0)
    return found
