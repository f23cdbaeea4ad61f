"""From what lm-evaluation-harness found of tasks to figures with intervals and paired tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tilth.data.bootstrap import Floats, Interval, Statistic, mean, percentiles
from tilth.evaluate.scores import Comparison, Scored, compared_with, intervals

#: of a task and its parts: "figures" {name: value}, "samples" {name: [value of each document]}, "documents"
#: {task: how many}, "groups" {group: [its tasks]}, "less" [figures of which less is better], "versions", and "draws"
#: {name: [figure of each draw of documents]}
Told = dict[str, Any]


def scored_of(tasks: Sequence[Told]) -> Scored:
    """Figures that are means of their documents' values, of groups too."""
    statistics = {
        name: mean(values)
        for told in tasks
        for name, values in told["samples"].items()
        if is_mean(values, told["figures"].get(name))
    }
    for told in tasks:
        for group, parts in told["groups"].items():
            statistics |= _of_group(group, parts, told)
    versions = {task: version for told in tasks for task, version in told["versions"].items()}
    return Scored(statistics, {"task": "harness", "versions": versions})


def is_mean(values: Sequence[float], figure: float | None) -> bool:
    """Whether a figure is the mean of its documents' values."""
    return figure is not None and bool(np.isclose(np.mean(values), figure, rtol=1e-9))


def _of_group(group: str, parts: Sequence[str], told: Told) -> dict[str, Statistic]:
    """Figures of a group that are means over all documents of its tasks, or over the means of its tasks."""
    found: dict[str, Statistic] = {}
    for figure, value in told["figures"].items():
        name, _, metric = figure.partition("/")
        # the harness leaves out tasks without the metric
        each = [values for part in parts if (values := told["samples"].get(f"{part}/{metric}")) is not None]
        if name != group or not each:
            continue
        values = np.concatenate(each)
        member = np.repeat(np.eye(len(each)), [len(item) for item in each], axis=0)
        means = Statistic(np.column_stack([member * values[:, None], member]), _mean_of_means)
        for statistic in (mean(values), means):
            if np.isclose(statistic.point(), value, rtol=1e-9):
                found[figure] = statistic
                break
    return found


def _mean_of_means(sums: Floats) -> Floats:
    """Of tasks' sums, then their counts; a task that a draw left out does not count in it."""
    totals, counts = np.split(sums, 2, axis=1)
    seen = counts > 0
    found: Floats = np.where(seen, totals / np.maximum(counts, 1), 0.0).sum(axis=1) / seen.sum(axis=1)
    return found


def intervals_of(tasks: Sequence[Told], scored: Scored, samples: int, seed: int) -> dict[str, Interval]:
    """Every figure that has an interval: means by resampled documents, others as they were drawn with the task."""
    drawn = {name: np.array(values) for told in tasks for name, values in told["draws"].items()}
    points = _points(tasks)
    kept = {name: percentiles(points[name], values) for name, values in drawn.items()}
    return intervals(scored, samples, seed) | kept


def sizes(tasks: Sequence[Told]) -> dict[str, int]:
    """How many documents each figure is of that was drawn with its task."""
    return {name: told["documents"][name.partition("/")[0]] for told in tasks for name in told["draws"]}


def compared_of(
    told: Mapping[str, Sequence[Told]], scored: Mapping[str, Scored], baseline: str | None, samples: int, seed: int
) -> dict[str, list[Comparison]]:
    """Every other model against the baseline in each figure that has an interval, corrected for all of them."""
    if baseline is None:
        return {}
    less = {name for tasks in told.values() for item in tasks for name in item["less"]}
    others = {name: list(_paired(tasks, told[baseline])) for name, tasks in told.items() if name != baseline}
    found = compared_with(scored, baseline, samples, seed, others)
    return {name: [replace(i, less_is_better=i.metric in less) for i in items] for name, items in found.items()}


def _paired(model: Sequence[Told], baseline: Sequence[Told]) -> Iterator[Comparison]:
    """Figures of two models in the same draws of documents.

    The p is twice the share of draws beyond no difference (Efron & Tibshirani 1993, chapter 15; Koehn 2004).
    """
    mine, theirs = ({name: v for told in side for name, v in told["draws"].items()} for side in (model, baseline))
    ours, others = _points(model), _points(baseline)
    for name in mine:
        gap = np.array(mine[name]) - np.array(theirs.get(name, np.nan))
        if np.isfinite(gap).all():
            tail = min(int((gap <= 0).sum()), int((gap >= 0).sum()))
            p = min(1.0, 2 * (tail + 1) / (len(gap) + 1))
            yield Comparison(name, percentiles(ours[name] - others[name], gap), p, "paired bootstrap")


def _points(tasks: Sequence[Told]) -> dict[str, float]:
    return {name: value for told in tasks for name, value in told["figures"].items()}
