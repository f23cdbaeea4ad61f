"""What a report shows of a training on several tasks: losses, weights and rows of each, and how gradients lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from tilth.report import figures
from tilth.report.svg import BAD, SERIES, Picture, Pictures, drawing, label

Lines = Sequence[Mapping[str, Any]]
#: caption, head, rows
Plain = tuple[str, tuple[str, ...], Sequence[Sequence[Any]]]
_WIDTH = 7.6


def tasks(pictures: Pictures, stage: str, trace: Lines) -> Iterator[Picture]:
    """The pictures of one model's trace, none where it was trained on one task."""
    told = [line for line in trace if line.get("tasks")]
    if told:
        yield _courses(pictures, told, f"Tasks of {stage}: loss, weight and rows by step")
    measured = [line["conflict"] for line in told if line.get("conflict")]
    if measured:
        yield _cosines(pictures, measured, f"Cosines between the gradients of {stage}'s tasks")


def _courses(pictures: Pictures, told: Lines, title: str) -> Picture:
    """A panel for each figure, a line for each task."""
    names = list(dict.fromkeys(task for line in told for task in line["tasks"]))
    with drawing(_WIDTH, 2.6, panels=3) as (figure, panels):
        for axes, key in zip(panels, ("loss", "weight", "rows"), strict=True):
            for number, task in enumerate(names):
                points = [(line["step"], line["tasks"][task][key]) for line in told if task in line["tasks"]]
                axes.plot(*np.array(points).T, color=SERIES[number % len(SERIES)], label=label(task), linewidth=1.1)
            axes.set(xlabel="step", title=key)
        panels[0].legend(loc="upper right")
    last = told[-1]["tasks"]
    said = "; ".join(f"{task}: loss {item['loss']:.3f}, weight {item['weight']:.2f}" for task, item in last.items())
    return pictures.of(figure, title, f"At the last step: {said}")


def _cosines(pictures: Pictures, measured: Lines, title: str) -> Picture:
    """The matrix of mean cosines beside the share of steps in which two tasks conflict."""
    names = [label(task, 22) for task in measured[0]["tasks"]]
    stack = np.array([item["cosines"] for item in measured], dtype=float)
    seen = ~np.isnan(stack)
    count = np.maximum(seen.sum(axis=0), 1)
    mean = np.where(seen, stack, 0).sum(axis=0) / count
    against = (np.where(seen, stack, 0) < 0).sum(axis=0) / count
    with drawing(_WIDTH, 1.6 + 0.35 * len(names), panels=2) as (figure, panels):
        for axes, matrix, what in zip(panels, (mean, against), ("mean cosine", "share of steps < 0"), strict=True):
            for (row, column), value in np.ndenumerate(matrix):
                bad = value < 0 or what != "mean cosine"
                colour, strength = BAD if bad else SERIES[0], min(1.0, abs(value))
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, alpha=0.75 * strength))
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8)
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
            axes.set_yticks(range(len(names)), names if what == "mean cosine" else [""] * len(names), fontsize=8)
            axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), title=what)
            axes.grid(False)
    pairs = [(mean[i, j], names[j], names[i]) for i in range(len(names)) for j in range(i)]
    lowest, one, other = min(pairs)
    said = f"Over {len(measured):,} steps; {one} and {other} lie furthest apart, at a mean cosine of {lowest:.2f}"
    return pictures.of(figure, title, said)


def transfer(pictures: Pictures, detail: Mapping[str, Any]) -> tuple[list[Picture], list[Plain]]:
    """Scores by task; several tasks' models against each task's own; what one task's model gains on another's rows."""
    parts: Mapping[str, Any] = detail["tasks"]
    scores = [
        (task, name, part["rows"], part["metric"], *_three(found[part["metric"]]))
        for task, part in parts.items()
        for name, found in part["models"].items()
    ]
    tables: list[Plain] = [("Scores by task", ("task", "model", "rows", "metric", "value", "low", "high"), scores)]
    gaps = {task: part["against_single"] for task, part in parts.items() if part["against_single"]}
    if not gaps:
        return [], tables
    panels = {
        f"{task}, {parts[task]['metric']}": [{"name": name, **item["difference"]} for name, item in found.items()]
        for task, found in gaps.items()
    }
    title = "Several tasks together against each alone, paired by row, with 95 % intervals"
    names = tuple(detail["transfer"])
    gains = [(source, *row.values()) for source, row in detail["transfer"].items()]
    caption = "Transfer: what the model of one task (row) gains on another (column) over that one's own"
    return figures.forests(pictures, panels, title, zero=True), [*tables, (caption, ("trained on", *names), gains)]


def _three(item: Mapping[str, float]) -> tuple[float, float, float]:
    return item["value"], item["low"], item["high"]
