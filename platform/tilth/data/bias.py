"""The bias report: how made rows differ from the originals in what they are about and whom they name.

Facets, each a distribution over rows on both sides: labels, lengths (words), topics (k-means on TF-IDF, named by
their heaviest words), sentiment (VADER, Hutto and Gilbert 2014), and for each axis of `data.identity` the groups that
are named, with `none` for rows that name nobody. Two figures say how far the sides are apart: the Jensen-Shannon
divergence in bits (Lin 1991; 0 to 1) and the total variation (0 to 1, the share of rows that would have to move).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tilth.data.dedup import words
from tilth.data.identity import TERMS, groups_of
from tilth.data.schema import Row, row_seed
from tilth.data.texts import text_or_none, whole_text

#: rows of a side that are looked at, drawn by id
SAMPLE = 20_000
TOPICS = 12
#: upper bounds of the length classes, in words
_LENGTHS = (4, 8, 16, 32, 64, 128, 256, 512)
#: VADER's authors count a compound score from 0.05 on as positive
_NEUTRAL = 0.05
#: characters of a text whose sentiment is scored
_SCORED = 2000
_DRAWS = 400
_NOISE = 0.95
NOBODY = "none"

Vector = np.ndarray[Any, np.dtype[np.float64]]
Classify = Callable[[list[Row], list[str]], list[list[str]]]


def report(
    originals: Iterable[Row],
    synthetic: Iterable[Row],
    field: str,
    *,
    topics: int = TOPICS,
    sample: int = SAMPLE,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of every facet, JSON-ready; {} of `facets` where a side has no rows.

    rows {originals, synthetic}; facets {name: {values: [[value, originals, synthetic], …] as row counts, js_bits,
    total_variation, noise_bits}}. `noise_bits` is the divergence that two samples of these sizes from one and the same
    distribution stay under in 95 of 100 draws: less is no finding. Rows without text in `field` are read whole.
    About 2,000 short rows a second.
    """
    sides = [_drawn(rows, sample, seed) for rows in (originals, synthetic)]
    counts = dict(zip(("originals", "synthetic"), map(len, sides), strict=True))
    if not all(sides):
        return {"rows": counts, "facets": {}}
    rows = [row for side in sides for row in side]
    texts = [text_or_none(row, field) or whole_text(row) for row in rows]
    facets = {}
    for name, values in _facets(rows, texts, topics, seed):
        sizes = [
            Counter(value for row in part for value in row)
            for part in (values[: len(sides[0])], values[len(sides[0]) :])
        ]
        if name != "labels" or set(sizes[0]) | set(sizes[1]) != {NOBODY}:
            facets[name] = compared(*sizes, seed=seed)
    return {"rows": counts, "facets": facets}


def exceeded(found: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """A line for each facet whose divergence is above its limit in bits, and above what chance alone would give.

    `limits` names facets (labels, lengths, topics, sentiment, gender, …) or `identity` for all its axes.
    """
    lines = []
    for name, facet in found["facets"].items():
        limit = limits.get(name, limits.get("identity") if name in TERMS else None)
        if limit is None or facet["js_bits"] <= max(limit, facet["noise_bits"]):
            continue
        lines.append(
            f"bias: {name} of the made rows diverge by {facet['js_bits']:.3f} bits from the originals, more than "
            f"{limit:g}: {_widest(facet, found['rows'])}"
        )
    return lines


def _widest(facet: Mapping[str, Any], rows: Mapping[str, int]) -> str:
    """The value whose share changed most."""
    sums = [max(1, sum(item[side] for item in facet["values"])) for side in (1, 2)]
    name, old, new = max(facet["values"], key=lambda item: abs(item[1] / sums[0] - item[2] / sums[1]))
    return f"{name!r} went from {old / sums[0]:.1%} to {new / sums[1]:.1%}"


def compared(old: Mapping[str, int], new: Mapping[str, int], *, seed: int = 0) -> dict[str, Any]:
    """The figures of one facet from the counts of its values on both sides."""
    values = sorted(set(old) | set(new), key=lambda value: (-old.get(value, 0), -new.get(value, 0), value))
    left, right = (np.array([side.get(value, 0) for value in values], float) for side in (old, new))
    return {
        "values": [[value, old.get(value, 0), new.get(value, 0)] for value in values],
        "js_bits": round(jensen_shannon(left, right), 6),
        "total_variation": round(total_variation(left, right), 6),
        "noise_bits": round(_noise(left, right, seed), 6),
    }


def jensen_shannon(left: Vector, right: Vector) -> float:
    """Jensen-Shannon divergence in bits of two vectors of counts, 0 to 1."""
    p, q = left / left.sum(), right / right.sum()
    middle = (p + q) / 2
    return max(0.0, float(_entropy(middle) - (_entropy(p) + _entropy(q)) / 2))


def total_variation(left: Vector, right: Vector) -> float:
    """Half the sum of the differences in share, 0 to 1."""
    return float(np.abs(left / left.sum() - right / right.sum()).sum() / 2)


def _entropy(shares: Vector) -> Any:
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return -(shares * logs).sum(axis=-1)


def _noise(left: Vector, right: Vector, seed: int) -> float:
    """The 95th percentile of the divergence of two samples of these sizes from what both are together."""
    both = (left + right) / (left + right).sum()
    rng = np.random.default_rng(seed)
    shares = [rng.multinomial(int(side.sum()), both, size=_DRAWS) / side.sum() for side in (left, right)]
    middle = (shares[0] + shares[1]) / 2
    drawn = _entropy(middle) - (_entropy(shares[0]) + _entropy(shares[1])) / 2
    return float(np.quantile(drawn, _NOISE))


def _drawn(rows: Iterable[Row], sample: int, seed: int) -> list[Row]:
    """At most `sample` rows, those whose ids hash lowest; in order of their ids."""
    drawn = heapq.nsmallest(sample, rows, key=lambda row: row_seed(seed, row["id"], "bias"))
    return sorted(drawn, key=lambda row: str(row["id"]))


def _facets(rows: list[Row], texts: list[str], topics: int, seed: int) -> Iterator[tuple[str, list[list[str]]]]:
    """Each facet's name and, for each row, the values that it has."""
    yield "labels", [[row.get("label") or NOBODY] for row in rows]
    yield "lengths", [[_length(text)] for text in texts]
    yield "topics", [[topic] for topic in topics_of(texts, topics, seed)]
    yield "sentiment", [[value] for value in sentiments(texts)]
    for axis in TERMS:
        yield axis, [groups_of(text, axis) or [NOBODY] for text in texts]


def _length(text: str) -> str:
    count = len(words(text))
    low = 0
    for high in _LENGTHS:
        if count <= high:
            return f"{low + 1}-{high}" if low else f"to {high}"
        low = high
    return f"over {low}"


def topics_of(texts: Sequence[str], count: int = TOPICS, seed: int = 0) -> list[str]:
    """A topic for each text: k-means on TF-IDF of its words, named by the three heaviest of the cluster's centre.

    All texts are clustered together, whoever made them. Texts without a word that is common enough: `other`.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    least = 2 if len(texts) < 2000 else 5
    vectorizer = TfidfVectorizer(stop_words="english", sublinear_tf=True, min_df=least, max_df=0.5, max_features=20_000)
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:  # no word is left: empty texts, or a script that is not split into words
        return ["other"] * len(texts)
    spoken = np.flatnonzero(np.asarray(weights.getnnz(axis=1)))
    count = min(count, len(spoken) // 10)
    if count < 2:
        return ["other"] * len(texts)
    model = MiniBatchKMeans(count, batch_size=1024, n_init=3, random_state=seed).fit(weights[spoken])
    names = vectorizer.get_feature_names_out()
    heavy = [", ".join(names[i] for i in np.argsort(-centre, kind="stable")[:3]) for centre in model.cluster_centers_]
    found = ["other"] * len(texts)
    for place, cluster in zip(spoken.tolist(), model.labels_.tolist(), strict=True):
        found[place] = heavy[cluster]
    return found


def sentiments(texts: Sequence[str]) -> list[str]:
    """negative, neutral or positive for the first 2,000 characters of each English text, by VADER's lexicon."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    scores = [analyzer.polarity_scores(text[:_SCORED])["compound"] for text in texts]
    return ["positive" if s >= _NEUTRAL else "negative" if s <= -_NEUTRAL else "neutral" for s in scores]
