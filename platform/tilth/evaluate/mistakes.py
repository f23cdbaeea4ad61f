"""Where a model fails: its worst rows and the pairs of labels that it mixes up, to be read in the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilth.data.schema import Row
from tilth.data.texts import whole_text
from tilth.evaluate.measures.classes import guesses, truth_of
from tilth.evaluate.scores import LOWER_IS_BETTER, Scored, kind_of
from tilth.evaluate.training import Neighbours, quoted

_WORST, _PAIRS, _EXAMPLES = 20, 8, 5


def mistakes(rows: Sequence[Row], scored: Scored, neighbours: Neighbours | None) -> dict[str, Any]:
    """{errors: the worst rows, each with what it was taken for and what it resembles; confusions: pairs of labels}."""
    if not scored.statistics:
        return {}
    places = _worst(rows, scored)
    near = neighbours.of([rows[place] for place, _ in places]) if neighbours else [[] for _ in places]
    errors = [
        {**_told(rows[place]), "metric": scored.headline, "score": round(value, 6), "nearest": training}
        for (place, value), training in zip(places, near, strict=True)
    ]
    return {"errors": errors, **({"confusions": _confusions(rows)} if "confusion" in scored.detail else {})}


def _worst(rows: Sequence[Row], scored: Scored) -> list[tuple[int, float]]:
    """Places and scores of the worst rows, of equal ones the most confident; none that is as good as can be."""
    statistic = scored.statistics[scored.headline]
    each = statistic.each()
    badness = each if scored.headline in LOWER_IS_BETTER else -each
    sure = np.array([row["meta"].get("confidence", 0.0) for row in rows])
    order = np.lexsort((-sure, -badness))[:_WORST]
    right = statistic.right
    return [(int(place), float(each[place])) for place in order if right is None or not right[place]]


def _told(row: Row) -> dict[str, Any]:
    """A row as the report shows it."""
    meta = row["meta"]
    said = meta["answers"][0] if "answers" in meta else meta.get("prediction")
    return {
        "id": row["id"],
        "text": quoted(whole_text(row)),
        "said": None if said is None else quoted(_plain(said)),
        "right": _right(row),
        "confidence": meta.get("confidence"),
    }


def _right(row: Row) -> str | None:
    kind = kind_of(row)
    if references := row["meta"].get("references"):
        return quoted(" | ".join(references))
    if kind == "token_classification":
        return quoted(_plain(row["tags"]))
    if kind == "question_answering":
        return quoted(" | ".join(item["text"] for item in row["answers"]) or "no answer")
    label: str | None = row.get("label")
    return label if kind == "classification" else None


def _plain(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _confusions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The pairs that are mixed up most, with the rows of which the model is surest."""
    pairs = list(zip(truth_of(rows), guesses(rows), strict=True))
    counts = Counter(pair for pair in pairs if pair[0] != pair[1])
    order = sorted(counts, key=lambda pair: (-counts[pair], pair))[:_PAIRS]
    sure = sorted(range(len(rows)), key=lambda place: -rows[place]["meta"].get("confidence", 0.0))
    return [
        {
            "true": pair[0],
            "predicted": pair[1],
            "rows": counts[pair],
            "examples": [_told(rows[place]) for place in sure if pairs[place] == pair][:_EXAMPLES],
        }
        for pair in order
    ]
