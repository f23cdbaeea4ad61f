"""Scores of parts of the rows: by label, length, task, origin, or whatever stands in their meta."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from tilth.data.bootstrap import interval
from tilth.data.schema import Row, value_at
from tilth.data.texts import whole_text
from tilth.errors import StageError
from tilth.evaluate.measures.base import Predicted
from tilth.evaluate.metrics import Partial
from tilth.evaluate.scores import Scored

#: values of a slice that are told, those with the most rows
MOST = 24
_BUCKETS = 4


def slices(
    predicted: Predicted, scored: Mapping[str, Scored], names: Sequence[str], samples: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """For each slice its values, most rows first: {value, rows, models: {model: interval of its first metric}}.

    A model has no figure where its metric says nothing of such rows, as AUC of those of one label. StageError for a
    path at which no row has anything.
    """
    rows = next(iter(predicted.values()))
    values = {name: values_of(rows, name) for name in names}
    for name, found in values.items():
        if "." in name and not any(value is not None for value in found):
            there = ", ".join(sorted({f"meta.{key}" for row in rows for key in row["meta"]}))
            raise StageError(f"slices: no row has anything at {name}; in meta rows have {there or 'nothing'}")
    return {name: cut_by(found, scored, samples, seed) for name, found in values.items()}


def cut_by(values: Sequence[str | None], scored: Mapping[str, Scored], samples: int, seed: int) -> list[dict[str, Any]]:
    """Scores of the rows of each value; rows without one are left out."""
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        if value is not None:
            places.setdefault(value, []).append(place)
    order = sorted(places, key=lambda value: (-len(places[value]), value))[:MOST]
    return [
        {
            "value": value,
            "rows": len(places[value]),
            "models": {name: _part(item, places[value], samples, seed) for name, item in scored.items()},
        }
        for value in order
    ]


def _part(item: Scored, places: list[int], samples: int, seed: int) -> dict[str, Any]:
    if not item.statistics:
        return {}
    statistic = item.statistics[item.headline]
    part = replace(statistic, terms=statistic.terms[np.array(places)])
    if isinstance(part, Partial) and not part.known:
        return {}
    return {"metric": item.headline, **asdict(interval(part, samples, seed))}


def values_of(rows: Sequence[Row], name: str) -> list[str | None]:
    """What each row falls under in a slice: label, length, task or origin, else what stands at a dotted path."""
    if name == "length":
        return _lengths(rows)
    known: dict[str, Callable[[Row], Any]] = {
        "label": lambda row: row.get("label"),
        "task": lambda row: row["task"],
        "origin": lambda row: "original" if row["via"] is None else f"made by {row['via']}",
    }
    found = [known[name](row) if name in known else value_at(row, name) for row in rows]
    return [None if value is None else str(value) for value in found]


def _lengths(rows: Sequence[Row]) -> list[str | None]:
    """Quarters of the rows by the words of their text, called by their bounds."""
    sizes = np.array([len(whole_text(row).split()) for row in rows])
    highest = np.unique(np.quantile(sizes, np.arange(1, _BUCKETS + 1) / _BUCKETS).astype(int))
    lowest = [int(sizes.min()), *(highest[:-1] + 1)]
    bounds = zip(lowest, highest.tolist(), strict=True)
    names = [f"{low} words" if low == high else f"{low}–{high} words" for low, high in bounds]
    return [names[place] for place in np.searchsorted(highest, sizes, side="left").tolist()]
