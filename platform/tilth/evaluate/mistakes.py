"""Where a model fails: its worst rows and the pairs of labels that it mixes up, to be read in the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilth.data.bootstrap import Floats, Statistic
from tilth.data.schema import Row
from tilth.data.texts import whole_text
from tilth.evaluate.measures.base import AnswerMetric
from tilth.evaluate.measures.classes import guesses, truth_of
from tilth.evaluate.metrics import accuracy
from tilth.evaluate.scores import Scored, kind_of
from tilth.evaluate.training import Neighbours, quoted

_WORST, _PAIRS, _EXAMPLES = 20, 8, 5


def mistakes(rows: Sequence[Row], scored: Scored, neighbours: Neighbours | None) -> dict[str, Any]:
    """{errors: the worst rows, each with what it was taken for and what it resembles; confusions: pairs of labels}."""
    if not scored.statistics:
        return {}
    confused = {"confusions": _confusions(rows)} if "confusion" in scored.detail else {}
    figure, statistic = _of_rows(rows, scored)
    if statistic is None:
        return confused
    places = _worst(rows, scored, figure, statistic)
    near = neighbours.of([rows[place] for place, _ in places]) if neighbours else [[] for _ in places]
    errors = [
        {**_told(rows[place]), "metric": figure, "score": round(value, 6), "nearest": training}
        for (place, value), training in zip(places, near, strict=True)
    ]
    return {"errors": errors, **confused}


def _of_rows(rows: Sequence[Row], scored: Scored) -> tuple[str, Statistic | None]:
    """The first figure that says how good a row is by itself; of labels accuracy where none does, else None."""
    for figure, statistic in scored.statistics.items():
        if figure not in scored.metrics or figure not in scored.metrics[figure].of_many:
            return figure, statistic
    labels = isinstance(rows[0]["meta"].get("prediction"), str) and kind_of(rows[0]) != "question_answering"
    known = all(row["meta"].get("references") or row.get("label") is not None for row in rows)
    return "accuracy", accuracy(truth_of(rows), guesses(rows)) if labels and known else None


def _worst(rows: Sequence[Row], scored: Scored, figure: str, statistic: Statistic) -> list[tuple[int, float]]:
    """Places and scores of the worst rows, of equal ones the most confident; none that is as good as can be."""
    each, less = statistic.each(), scored.less_is_better(figure)
    sure = np.array([row["meta"].get("confidence", 0.0) for row in rows])
    fine = _as_good_as_can_be(rows, scored, figure, statistic, each)
    order = np.lexsort((-sure, -each if less else each))
    return [(int(place), float(each[place])) for place in order if not fine[place]][:_WORST]


def _as_good_as_can_be(
    rows: Sequence[Row], scored: Scored, figure: str, statistic: Statistic, each: Floats
) -> NDArray[np.bool_]:
    """Which rows no answer could have served better, as far as can be told."""
    metric = scored.metrics.get(figure)
    fine = np.array([_is_right(row, isinstance(metric, AnswerMetric)) for row in rows])
    best = metric.best if metric is not None else None
    if statistic.right is not None:
        best = 0.0 if scored.less_is_better(figure) else 1.0
    return fine if best is None else fine | np.isclose(each, best, rtol=0, atol=1e-6)


def _is_right(row: Row, compares: bool) -> bool:
    """Whether the tags are the true ones or, where answers are compared with references, the answer is one of those."""
    meta = row["meta"]
    if row.get("tags"):
        return bool(meta.get("prediction") == row["tags"])
    return compares and meta["answers"][0].strip() in (text.strip() for text in meta["references"])


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
