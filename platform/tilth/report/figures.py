"""The report's figures, each a small function from plain numbers to a Picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from tilth.report.svg import BAD, INK, MUTED, SERIES, Picture, Pictures, drawing, label

Flow = tuple[str, str, int]
ACCEPTED = "accepted"
_WIDTH = 7.6
_LABELS = 40
_PANELS = 4


def flow(pictures: Pictures, flows: Sequence[Flow], title: str) -> Picture:
    """Where rows came from (left) and what became of them (right); every band is as thick as its rows are many."""
    sources = _totals((source, rows) for source, _, rows in flows)
    fates = _totals((fate, rows) for _, fate, rows in flows)
    slots = max(len(sources), len(fates))
    with drawing(_WIDTH, 1.3 + 0.34 * slots) as (figure, (axes,)):
        total = sum(sources.values())
        gap = total * 0.3 * slots / (1.3 + 0.1 * slots) / max(slots, 1)
        left, right = _stack(sources, gap), _stack(fates, gap)
        for source, fate, rows in flows:
            colour = SERIES[0] if fate == ACCEPTED else BAD
            axes.add_patch(_band(left, right, source, fate, rows, colour))
        _nodes(axes, 0.0, sources, gap, "right")
        _nodes(axes, 1.0, fates, gap, "left")
        axes.set(xlim=(-0.62, 1.62), ylim=(-total - gap * (slots - 1) - gap / 2, gap / 2))
        axes.set_axis_off()
    said = "; ".join(f"{rows:,} rows of {source}: {fate}" for source, fate, rows in flows)
    return pictures.of(figure, title, said)


def _totals(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, rows in pairs:
        found[name] = found.get(name, 0) + rows
    return found


def _stack(nodes: Mapping[str, int], gap: float) -> dict[str, float]:
    """The upper edge of each node, from 0 downwards."""
    edges, edge = {}, 0.0
    for name, rows in nodes.items():
        edges[name] = edge
        edge -= rows + gap
    return edges


def _band(left: dict[str, float], right: dict[str, float], source: str, fate: str, rows: int, colour: str) -> PathPatch:
    """A curved band between two nodes; takes its place from both."""
    a, b = left[source], right[fate]
    left[source], right[fate] = a - rows, b - rows
    upper = [(0.02, a), (0.5, a), (0.5, b), (0.98, b)]
    lower = [(0.98, b - rows), (0.5, b - rows), (0.5, a - rows), (0.02, a - rows)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    return PathPatch(
        Path([*upper, *lower, upper[0]], codes), facecolor=colour, edgecolor=colour, alpha=0.45, linewidth=0.6
    )


def _nodes(axes: Axes, x: float, nodes: Mapping[str, int], gap: float, side: str) -> None:
    for name, edge in _stack(nodes, gap).items():
        rows = nodes[name]
        axes.add_patch(Rectangle((x - 0.02, edge - rows), 0.04, rows, facecolor=INK, linewidth=0))
        place = x - 0.05 if side == "right" else x + 0.05
        axes.text(place, edge - rows / 2, f"{label(name)}  {rows:,}", ha=side, va="center", fontsize=9)


def balance(pictures: Pictures, before: Mapping[str, int], after: Mapping[str, int], title: str) -> Picture:
    """Rows of each label among the originals and with what was added, as a dot each and a line between."""
    order = sorted(after, key=lambda name: (before.get(name, 0), name))
    shown = [order[i] for i in np.linspace(0, len(order) - 1, min(_LABELS, len(order))).astype(int)]
    with drawing(_WIDTH, 1.0 + 0.19 * len(shown)) as (figure, (axes,)):
        places = np.arange(len(shown))
        old, new = [before.get(name, 0) for name in shown], [after[name] for name in shown]
        axes.hlines(places, old, new, color=MUTED, linewidth=1.2)
        axes.plot(old, places, "o", color=SERIES[1], markersize=4.5, label="originals")
        axes.plot(new, places, "o", color=SERIES[0], markersize=4.5, label="with added rows")
        axes.set_yticks(places, [label(name) for name in shown], fontsize=8)
        axes.set(xlim=(0, None), xlabel="rows", ylim=(-0.7, len(shown) - 0.3))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    part = f"{len(shown)} of {len(order)} labels" if len(shown) < len(order) else f"{len(order)} labels"
    low, high = (f"{min(c.values(), default=0):,} to {max(c.values(), default=0):,}" for c in (before, after))
    return pictures.of(figure, title, f"{part}: {low} rows a label among the originals, {high} with added rows")


def curves(pictures: Pictures, traces: Mapping[str, Sequence[Mapping[str, float]]], title: str) -> Picture:
    """Loss and gradient norm of each model by optimizer step: faint as logged, bold as a running median."""
    with drawing(_WIDTH, 2.9, panels=2) as (figure, panels):
        for axes, key, name in zip(panels, ("loss", "grad_norm"), ("training loss", "gradient norm"), strict=True):
            for colour, (model, trace) in zip(_colours(len(traces)), traces.items(), strict=True):
                points = np.array([(p["step"], p[key]) for p in trace if p.get(key) is not None]).reshape(-1, 2)
                axes.plot(points[:, 0], points[:, 1], color=colour, alpha=0.3, linewidth=0.9)
                axes.plot(points[:, 0], _running_median(points[:, 1]), color=colour, label=label(model))
            axes.set(xlabel="step", title=name)
        panels[0].legend(loc="upper right")
    said = "; ".join(
        f"{model}: loss from {trace[0]['loss']:.3f} to {trace[-1]['loss']:.3f} in {trace[-1]['step']:,} steps"
        for model, trace in traces.items()
    )
    return pictures.of(figure, title, said)


def growth(pictures: Pictures, history: Sequence[Mapping[str, Any]], title: str) -> Picture:
    """Rows of a generating stage by round: kept in all, and the share of a round's rows that passed."""
    rounds = np.arange(1, len(history) + 1)
    kept = np.array([item["accepted"] for item in history])
    made = np.array([item["made"] for item in history])
    shares = kept / np.maximum(made, 1)
    with drawing(_WIDTH, 2.6, panels=2) as (figure, (left, right)):
        left.step(rounds, np.cumsum(kept), where="mid", color=SERIES[0])
        left.set(xlabel="round", title="rows kept in all", ylim=(0, None))
        right.plot(rounds, shares, "o-", color=SERIES[1], markersize=4)
        right.set(xlabel="round", title="share kept of a round's rows", ylim=(0, 1.05))
    said = f"{kept.sum():,} rows kept of {made.sum():,} in {len(history)} rounds; {shares[0]:.0%} of the first, "
    return pictures.of(figure, title, f"{said}{shares[-1]:.0%} of the last")


def _colours(number: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(number)]


def _running_median(values: Any) -> Any:
    half = max(1, len(values) // 40)
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def forests(
    pictures: Pictures, panels: Mapping[str, Sequence[Mapping[str, Any]]], title: str, zero: bool
) -> list[Picture]:
    """Scores with their 95 % intervals: a panel for each metric, few in a picture; none where there is nothing to draw.

    A model has one row and one colour in all of them, whatever the order of its scores; `zero` marks no difference.
    """
    names = list(dict.fromkeys(item["name"] for items in panels.values() for item in items))
    items = list(panels.items())
    parts = [dict(items[start : start + _PANELS]) for start in range(0, len(items), _PANELS)]
    return [_forest(pictures, part, names, title, zero) for part in parts]


def _forest(
    pictures: Pictures, panels: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str], title: str, zero: bool
) -> Picture:
    rows, colours = len(names), _colours(len(names))
    with drawing(_WIDTH, 1.1 + 0.34 * rows, len(panels)) as (figure, all_axes):
        for axes, (metric, items) in zip(all_axes, panels.items(), strict=True):
            for item in items:
                place = names.index(item["name"])
                axes.plot([item["low"], item["high"]], [-place, -place], color=colours[place], linewidth=2.2)
                axes.plot(item["value"], -place, "o", color=colours[place], markersize=6)
            told = [label(name) for name in names] if axes is all_axes[0] else [""] * rows
            axes.set_yticks([-i for i in range(rows)], told)
            axes.set(title=metric.replace("_", " "), ylim=(0.6 - rows, 0.6))
            axes.locator_params(axis="x", nbins=5)
            if zero:
                axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    said = "; ".join(_in_words(metric, item) for metric, items in panels.items() for item in items)
    return pictures.of(figure, title, said)


def _in_words(metric: str, item: Mapping[str, Any]) -> str:
    name = f"{item['name']}, {metric.replace('_', ' ')}"
    return f"{name} {item['value']:.3f}, 95 % interval {item['low']:.3f} to {item['high']:.3f}"


def heat_map(pictures: Pictures, counts: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> Picture:
    """A confusion matrix: rows are true labels, columns predicted ones, ink is the share of the true label's rows."""
    matrix = np.asarray(counts)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = len(labels)
    inches = min(_WIDTH, 2.2 + 0.3 * size)
    with drawing(inches, inches) as (figure, (axes,)):
        for true, guess in np.argwhere(matrix):
            colour, share = SERIES[0] if true == guess else BAD, 0.12 + 0.88 * shares[true, guess]
            axes.add_patch(Rectangle((guess - 0.5, true - 0.5), 1, 1, facecolor=colour, alpha=share, linewidth=0))
            if size <= 12:
                axes.text(guess, true, f"{matrix[true, guess]:,}", ha="center", va="center", fontsize=8)
        _label_both(axes, labels)
    right = int(np.trace(matrix))
    return pictures.of(figure, title, f"{right:,} of {int(matrix.sum()):,} rows on the diagonal, over {size} labels")


def _label_both(axes: Axes, labels: Sequence[str]) -> None:
    """Label names on both sides; of many labels every n-th, so that they can be read."""
    size = len(labels)
    step = max(1, -(-size // _LABELS))
    places = range(0, size, step)
    names = [label(labels[i], 22) for i in places]
    small = 8 if size <= 20 else 6
    axes.set_xticks(places, names, rotation=90, fontsize=small)
    axes.set_yticks(places, names, fontsize=small)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel="predicted", ylabel="true", aspect="equal")
    axes.grid(size > 12)
