"""What a report shows of an evaluation beside its scores: parts of the rows, what was seen in training, and errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: caption, head, rows
Plain = tuple[str, tuple[str, ...], Sequence[Sequence[Any]]]
_TITLES = {"contamination": "Rows seen in training and not"}


@dataclass(frozen=True)
class Mistakes:
    """Rows that a model got wrong, under a title; those of a pair of labels are folded."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    folded: bool = False


def mistakes(model: Mapping[str, Any]) -> list[Mistakes]:
    """The worst rows of a model, then those of each pair of labels that it mixes up."""
    found = [Mistakes("Worst rows", model["errors"])] if model.get("errors") else []
    for pair in model.get("confusions", ()):
        title = f"{pair['true']} taken for {pair['predicted']}: {pair['rows']:,} rows"
        found.append(Mistakes(title, pair["examples"], folded=True))
    return found


def slices(detail: Mapping[str, Any]) -> Iterator[Plain]:
    """A table for each slice: its values, their rows, and every model's first metric there."""
    for name, parts in detail.get("slices", {}).items():
        rows = [
            (part["value"], part["rows"], model, item["metric"], item["value"], item["low"], item["high"])
            for part in parts
            for model, item in part["models"].items()
            if item
        ]
        if rows:
            head = (name, "rows", "model", "metric", "value", "low", "high")
            yield _TITLES.get(name, f"By {name}"), head, rows


def words(artifact_metrics: Mapping[str, Any], detail: Mapping[str, Any]) -> Iterator[str]:
    """What there is to say of contamination and of how figures were made comparable, in sentences."""
    if (share := artifact_metrics.get("contaminated")) is not None:
        yield f"{share:.2%} of the rows share wording with the rows that were trained on."
    signatures = {text for model in detail["models"].values() for text in model.get("signatures", {}).values()}
    yield from (f"sacrebleu: {text}." for text in sorted(signatures))
    for name, model in detail["models"].items():
        if cut := model.get("truncated"):
            yield f"{cut:,} of {detail['rows']:,} rows were cut for {name}, which reads or writes no more at once."
        if absent := model.get("auc_ovr", {}).get("absent"):
            held = f"auc_ovr of {name} is the mean over the {model['auc_ovr']['labels']} labels that rows have"
            yield f"{held}; no row has {', '.join(absent)}."


def beside(detail: Mapping[str, Any]) -> Iterator[Plain]:
    """Figures that have no interval: diversity, entities by type, what a harness computes over all documents."""
    points = [
        (name, figure, value)
        for name, each in detail.get("points", {}).items()
        for figure, value in each.items()
        if figure not in detail["models"][name]["intervals"]
    ]
    if points:
        yield "Figures without an interval", ("model", "figure", "value"), points
    diverse = [
        (name, *model["diversity"].values()) for name, model in detail["models"].items() if model.get("diversity")
    ]
    if diverse:
        keys = next(tuple(m["diversity"]) for m in detail["models"].values() if m.get("diversity"))
        yield "Diversity of answers", ("model", *keys), diverse
    for name, model in detail["models"].items():
        if found := model.get("entities"):
            head = ("entity", "precision", "recall", "f1-score", "support")
            yield f"Entities: {name}", head, [(kind, *(item[k] for k in head[1:])) for kind, item in found.items()]
