"""What a report shows of a search: which values were tried, what they scored, and whether the winner's lead is luck."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tilth.report import figures
from tilth.report.svg import BAD, INK, MUTED, SERIES, Picture, Pictures, drawing, label

#: caption, head, rows
Plain = tuple[str, tuple[str, ...], Sequence[Sequence[Any]]]
_WIDTH = 7.6
_LOG_SPAN = 20
# how far above the trials that lack a field those with a number for it begin
_ABSENT = 0.15


def pictures_of(pictures: Pictures, found: Mapping[str, Any], stage: str) -> Iterator[Picture]:
    """Parallel coordinates, importance, learning curves, the Pareto front and the finalists, each where it says more
    than nothing.
    """
    complete = [trial for trial in found["trials"] if trial["state"] == "complete"]
    if len(complete) > 1:
        yield _parallel(pictures, found, complete, f"Trials of {stage}: a line each, the winner bold")
    if found["importance"]:
        yield _importance(pictures, found["importance"], f"What explains {_name(found)} in {stage}")
    if any(len(trial["curve"]) > 1 for trial in found["trials"]):
        yield _curves(pictures, found, f"Trials of {stage} by step")
    if len(found["objectives"]) > 1:
        yield _front(pictures, found, complete, f"Pareto front of {stage}")
    spans = [item for item in found["finalists"] if item["low"] is not None]
    if spans:
        title = f"Finalists of {stage}: mean over seeds with 95 % intervals"
        yield from figures.forests(pictures, {_name(found): spans}, title, zero=False)


def tables(found: Mapping[str, Any]) -> Iterator[Plain]:
    """Finalists with their seeds, and every trial, the best first."""
    if found["finalists"]:
        seeds = list(dict.fromkeys(seed for item in found["finalists"] for seed in item["seeds"]))
        rows = [
            (item["name"], item["value"], item["low"], item["high"], *(item["seeds"].get(seed) for seed in seeds))
            for item in found["finalists"]
        ]
        head = ("candidate", "mean", "low", "high", *(f"seed {seed}" for seed in seeds))
        yield f"Finalists, {_name(found)} by seed", head, rows
    names = [item["metric"] for item in found["objectives"]]
    paths = list(found["space"])
    written = ("as written", *(_shown(found["written"][path]) for path in paths), "complete")
    rows = [(*written, *(found["written_scores"][name] for name in names), None)]
    for trial in _ranked(found):
        values = [_shown(trial["values"].get(path)) for path in paths]
        said = trial["error"] or trial["state"]
        rows.append((trial["number"], *values, said, *(trial["scores"].get(name) for name in names), trial["seconds"]))
    yield "Every trial", ("trial", *paths, "state", *names, "seconds"), rows


def _name(found: Mapping[str, Any]) -> str:
    return str(found["objectives"][0]["metric"])


def _ranked(found: Mapping[str, Any]) -> list[Any]:
    first = found["objectives"][0]
    sign = 1 if first["mode"] == "max" else -1
    return sorted(found["trials"], key=lambda trial: -sign * trial["scores"].get(first["metric"], -sign * math.inf))


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value, ensure_ascii=False)


def _parallel(pictures: Pictures, found: Mapping[str, Any], trials: Sequence[Any], title: str) -> Picture:
    """An axis for each field and one for the score; from the worst, pale, to the best, full."""
    columns = {**_columns(found, trials), _name(found): [trial["scores"][_name(found)] for trial in trials]}
    scaled = {name: _scaled(values) for name, values in columns.items()}
    order = {trial["number"]: rank for rank, trial in enumerate(reversed(_ranked(found)))}
    with drawing(_WIDTH, 3.4) as (figure, (axes,)):
        for place, trial in enumerate(trials):
            heights = [places[place] for places, _ in scaled.values()]
            best = trial["number"] == found["best"]
            strength = 0.12 + 0.6 * order[trial["number"]] / max(1, len(found["trials"]) - 1)
            colour, width = (SERIES[1], 2.4) if best else (SERIES[0], 1.1)
            axes.plot(range(len(heights)), heights, color=colour, alpha=1.0 if best else strength, linewidth=width)
        for x, (_, ticks) in enumerate(scaled.values()):
            axes.axvline(x, color=MUTED, linewidth=0.8)
            for height, text in ticks:
                axes.text(x + 0.03, height, label(text, 18), fontsize=7.5, va="center")
        axes.set_xticks(range(len(scaled)), [label(name, 24) for name in scaled], fontsize=8)
        axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.1, len(scaled) - 0.6))
        axes.grid(False)
    return pictures.of(figure, title, _in_words(found, trials))


def _in_words(found: Mapping[str, Any], trials: Sequence[Any]) -> str:
    scores = [trial["scores"][_name(found)] for trial in trials]
    best = next((trial for trial in trials if trial["number"] == found["best"]), None)
    values = ", ".join(f"{path} {_shown(value)}" for path, value in best["values"].items()) if best else "as written"
    return f"{len(trials)} trials, {_name(found)} from {min(scores):.4g} to {max(scores):.4g}; the winner: {values}"


def _columns(found: Mapping[str, Any], trials: Sequence[Any]) -> dict[str, list[Any]]:
    """The values of each axis by trial; shares of a simplex have an axis each."""
    columns: dict[str, list[Any]] = {}
    for path, space in found["space"].items():
        values = [trial["values"].get(path) for trial in trials]
        if space["kind"] == "simplex":
            for name in space["names"]:
                columns[f"{path}.{name}"] = [value and value[name] for value in values]
        else:
            columns[path] = values
    return columns


def _scaled(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights from 0 to 1, and the ticks: numbers by size, over a wide span by their logarithm, others by name.

    Where another kind was chosen a field is not there: such a trial's line passes below the numbers.
    """
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(numbers) + list(values).count(None) == len(values) > len(numbers):
        above, ticks = _scaled(numbers)
        risen = iter(_ABSENT + (1 - _ABSENT) * height for height in above)
        heights = [0.0 if value is None else next(risen) for value in values]
        return heights, [(0.0, "–"), *((_ABSENT + (1 - _ABSENT) * height, name) for height, name in ticks)]
    if len(numbers) < len(values):
        names = sorted({str(_shown(value)) for value in values})
        by_name = {name: place / max(1, len(names) - 1) for place, name in enumerate(names)}
        return [by_name[str(_shown(value))] for value in values], [(height, name) for name, height in by_name.items()]
    low, high = min(numbers), max(numbers)
    log = low > 0 and high / low >= _LOG_SPAN
    ends = np.log([low, high]) if log else np.array([low, high], dtype=float)
    span = ends[1] - ends[0] or 1.0
    places = (np.log(numbers) if log else np.array(numbers, dtype=float)) - ends[0]
    marks = sorted(set(numbers)) if len(set(numbers)) <= 6 else [low, high]
    ticks = [(float(((math.log(mark) if log else mark) - ends[0]) / span), f"{mark:.4g}") for mark in marks]
    return [float(place / span) for place in places], ticks


def _importance(pictures: Pictures, shares: Mapping[str, float], title: str) -> Picture:
    order = sorted(shares, key=lambda name: shares[name])
    with drawing(_WIDTH, 0.9 + 0.28 * len(order)) as (figure, (axes,)):
        axes.barh(range(len(order)), [shares[name] for name in order], color=SERIES[0], height=0.6)
        axes.set_yticks(range(len(order)), [label(name, 36) for name in order])
        axes.set(xlabel="share of the variance (fANOVA)", xlim=(0, 1))
    said = "; ".join(f"{name} {shares[name]:.0%}" for name in reversed(order))
    return pictures.of(figure, title, said)


def _curves(pictures: Pictures, found: Mapping[str, Any], title: str) -> Picture:
    """Every trial's figure by step; those that were ended early stop short."""
    with drawing(_WIDTH, 3.0) as (figure, (axes,)):
        for trial in found["trials"]:
            points = np.array(trial["curve"], dtype=float).reshape(-1, 2)
            best = trial["number"] == found["best"]
            colour = SERIES[1] if best else BAD if trial["state"] == "failed" else SERIES[0]
            axes.plot(*points.T, color=colour, alpha=1.0 if best else 0.35, linewidth=2.2 if best else 1.0)
        written = np.array(found["written_curve"], dtype=float).reshape(-1, 2)
        axes.plot(*written.T, color=INK, linewidth=1.4, linestyle=(0, (4, 3)), label="as written")
        axes.set(xlabel="step", title="on the way")
        axes.legend(loc="upper right")
    states = [trial["state"] for trial in found["trials"]]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return pictures.of(figure, title, f"{len(states)} trials: {counted}")


def _front(pictures: Pictures, found: Mapping[str, Any], trials: Sequence[Any], title: str) -> Picture:
    """Each further objective against the first: trials, those that no other beats in all, the recipe as written."""
    first, *others = (item["metric"] for item in found["objectives"])
    ahead = [trial for trial in trials if trial["front"]]
    with drawing(_WIDTH, 3.0, panels=len(others)) as (figure, panels):
        for axes, other in zip(panels, others, strict=True):
            for group, colour, size in ((trials, MUTED, 4), (ahead, SERIES[1], 6)):
                points = [(trial["scores"][other], trial["scores"][first]) for trial in group]
                axes.plot(*np.array(points, dtype=float).reshape(-1, 2).T, "o", color=colour, markersize=size)
            axes.plot(found["written_scores"][other], found["written_scores"][first], "x", color=INK, markersize=8)
            axes.set(xlabel=label(other, 30), title=first)
    said = "; ".join(
        f"trial {trial['number']}: " + ", ".join(f"{name} {value:.4g}" for name, value in trial["scores"].items())
        for trial in ahead
    )
    return pictures.of(figure, title, f"{len(ahead)} of {len(trials)} trials are on the front: {said}")
