"""What a report says of made rows as a whole: how diverse they are, and where they differ from the originals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tilth.data.bias import NOBODY
from tilth.data.identity import TERMS
from tilth.report.svg import BAD, INK, MUTED, SERIES, Picture, Pictures, drawing, label

Rows = list[tuple[Any, ...]]
DIVERSITY_HEAD = ("figure", "originals", "made rows")
BIAS_HEAD = ("facet", "divergence, bits", "by chance up to", "limit", "total variation")
_MEASURES = {
    "rows": "rows looked at",
    "distinct_1": "distinct words",
    "distinct_2": "distinct pairs of words",
    "distinct_3": "distinct triples of words",
    "self_bleu": "self-BLEU of 200 texts at most",
    "vendi": "Vendi score",
}
_SIDES = {"originals": "originals", "synthetic": "made rows"}
_WIDTH = 7.6
_MOST = 24  # values of a facet that are drawn
# a bar's part narrower than this share of the longest bar has no room for its name
_NAMED = 0.07


def diversity(detail: Mapping[str, Any]) -> Rows:
    """Lines under DIVERSITY_HEAD; none where nothing was made."""
    if "synthetic" not in detail:
        return []
    old, new = detail["originals"], detail["synthetic"]
    lines: Rows = [(name, old.get(key), new.get(key)) for key, name in _MEASURES.items()]
    found = detail["coverage"]
    lines.append((f"originals with a made neighbour (cosine {found['near']:g})", found["covered"], None))
    lines.append(("mean distance to the nearest on the other side", found["mean_distance"], found["novelty_distance"]))
    return lines


def bias(detail: Mapping[str, Any]) -> Rows:
    """Lines under BIAS_HEAD, a facet each; none where a side has no rows."""
    return [
        (name, facet["js_bits"], facet["noise_bits"], _limit(detail, name), facet["total_variation"])
        for name, facet in detail.get("facets", {}).items()
    ]


def _limit(detail: Mapping[str, Any], name: str) -> float | None:
    limits: Mapping[str, float] = detail["limits"]
    return limits.get(name, limits.get("identity") if name in TERMS else None)


def words(detail: Mapping[str, Any]) -> list[str]:
    """What there is to say of the figures, in sentences."""
    found: list[str] = []
    for name in ("diversity", "bias"):
        if part := detail.get(name):
            found.append(_looked_at(name, part["of"], detail["asked"][name]))
    if verbs := detail.get("diversity", {}).get("verb_nouns"):
        found.append(f"{verbs['parsed']:,} of the made texts have a root verb with an object.")
    return [*found, *detail.get("bias", {}).get("exceeded", [])]


def _looked_at(name: str, of: Mapping[str, int], asked: Mapping[str, Any]) -> str:
    """Of how many rows the figures are, and how those were drawn."""
    size, seed = asked["sample"], asked["seed"]
    sides = (f"{min(size, of[key]):,} of {of[key]:,} {side}" for key, side in _SIDES.items())
    return f"{name.capitalize()}: {' beside '.join(sides)}, drawn by id with seed {seed}."


def pictures_of(pictures: Pictures, detail: Mapping[str, Any], stage: str) -> Iterator[Picture]:
    """The map of verbs and nouns, divergences by facet, and the facets themselves."""
    verbs = detail.get("diversity", {}).get("verb_nouns", {}).get("verbs")
    if verbs:
        yield verb_map(pictures, verbs, f"What {stage} asks for: root verbs and their objects")
    report = detail.get("bias")
    if report and report["facets"]:
        yield divergences(pictures, report, f"How far the rows of {stage} are from the originals, by facet")
        for name in ("lengths", "topics", "sentiment"):
            values = _shares(report["facets"][name]["values"])
            yield shares(pictures, values, f"{name.capitalize()} among originals and made rows of {stage}")
        if named := _identity(report["facets"]):
            yield shares(pictures, named, f"Whom originals and made rows of {stage} name")


def _shares(values: Sequence[Sequence[Any]]) -> list[tuple[str, float, float]]:
    """(value, its share among originals, among made rows)."""
    old, new = (max(1, sum(item[side] for item in values)) for side in (1, 2))
    return [(str(name), a / old, b / new) for name, a, b in values]


def _identity(facets: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """The groups that are named at all, of every axis."""
    return [
        (f"{axis}: {name.replace('_', ' ')}", old, new)
        for axis in TERMS
        for name, old, new in _shares(facets[axis]["values"])
        if name != NOBODY
    ]


def verb_map(pictures: Pictures, verbs: Sequence[Mapping[str, Any]], title: str) -> Picture:
    """A bar for each verb, in parts for its commonest nouns, other nouns muted (Self-Instruct, figure 3)."""
    longest = max(item["count"] for item in verbs)
    with drawing(_WIDTH, 0.9 + 0.27 * len(verbs)) as (figure, (axes,)):
        for place, item in enumerate(verbs):
            left = 0
            parts = [*item["nouns"], [None, item["count"] - sum(count for _, count in item["nouns"])]]
            for number, (noun, count) in enumerate(parts):
                colour = MUTED if noun is None else SERIES[number % len(SERIES)]
                axes.barh(-place, count, left=left, height=0.72, color=colour, alpha=0.45, linewidth=0)
                if noun is not None and count >= _NAMED * longest:
                    axes.text(left + count / 2, -place, label(noun, 12), ha="center", va="center", fontsize=7.5)
                left += count
        axes.set_yticks([-place for place in range(len(verbs))], [label(item["verb"]) for item in verbs])
        axes.set(xlabel="made texts", ylim=(0.6 - len(verbs), 0.6))
        axes.grid(axis="y", visible=False)
    said = "; ".join(
        f"{item['verb']} {item['count']:,}: " + ", ".join(f"{noun} {count:,}" for noun, count in item["nouns"])
        for item in verbs
    )
    return pictures.of(figure, title, said)


def divergences(pictures: Pictures, report: Mapping[str, Any], title: str) -> Picture:
    """A dot for each facet's divergence, on a bar as long as chance alone would reach; a line at its limit."""
    facets = report["facets"]
    with drawing(_WIDTH, 1.0 + 0.25 * len(facets)) as (figure, (axes,)):
        for place, (name, facet) in enumerate(facets.items()):
            limit = _limit(report, name)
            axes.barh(-place, facet["noise_bits"], height=0.5, color=MUTED, alpha=0.35, linewidth=0)
            over = limit is not None and facet["js_bits"] > max(limit, facet["noise_bits"])
            axes.plot(facet["js_bits"], -place, "o", color=BAD if over else SERIES[0], markersize=6)
            if limit is not None:
                axes.plot([limit, limit], [-place - 0.35, -place + 0.35], color=INK, linewidth=1.4)
        axes.set_yticks([-place for place in range(len(facets))], list(facets))
        axes.set(xlim=(0, None), xlabel="Jensen-Shannon divergence, bits", ylim=(0.6 - len(facets), 0.6))
    said = "; ".join(f"{name} {facet['js_bits']:.3f} bits" for name, facet in facets.items())
    return pictures.of(figure, title, f"{said}; the bars reach as far as chance alone would")


def shares(pictures: Pictures, values: Sequence[tuple[str, float, float]], title: str) -> Picture:
    """Shares of values among originals and made rows, as a dot each and a line between."""
    shown = sorted(values, key=lambda item: max(item[1:]))[-_MOST:]
    places = np.arange(len(shown))
    old, new = [item[1] for item in shown], [item[2] for item in shown]
    with drawing(_WIDTH, 1.0 + 0.22 * len(shown)) as (figure, (axes,)):
        axes.hlines(places, old, new, color=MUTED, linewidth=1.2)
        axes.plot(old, places, "o", color=SERIES[1], markersize=4.5, label="originals")
        axes.plot(new, places, "o", color=SERIES[0], markersize=4.5, label="made rows")
        axes.set_yticks(places, [label(item[0], 36) for item in shown], fontsize=8)
        axes.set(xlim=(0, None), xlabel="share of rows", ylim=(-0.7, len(shown) - 0.3))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    said = "; ".join(f"{name} {a:.1%} and {b:.1%}" for name, a, b in reversed(shown))
    return pictures.of(figure, title, f"Among originals and made rows: {said}")
