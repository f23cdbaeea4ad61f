"""What a report says of people's judgements: the models, how far people agree, and who they are, by number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tilth.runs import Run

CAMPAIGNS = "annotation"
_SCORES = ("model", "of", "value", "low", "high", "weighed", "items")
_PEOPLE = ("person", "answers", "seconds", "speed", "checks", "failed", "alike", "competence")

Lines = tuple[str, tuple[str, ...], list[list[Any]]]


def campaigns(run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The figures that `tilth annotate` left in a run, by the campaign's name; not of one without an answer."""
    for name in run.store.list(CAMPAIGNS):
        if name.endswith(".json") and (found := run.store.read_json(f"{CAMPAIGNS}/{name}"))["answers"]:
            yield name.removesuffix(".json"), found


def words(found: Mapping[str, Any]) -> str:
    """One sentence: how much was judged, and how."""
    how = "compared in pairs" if found["form"] == "pairwise" else "marked"
    told = f"{len(found['people']):,} people gave {found['answers']:,} answers; {found['items']:,} items were {how}."
    side = found.get("first_shown")
    return told if side is None else f"{told} The answer shown first was preferred in {side:.0%} of decided cases."


def tables(found: Mapping[str, Any]) -> Iterator[Lines]:
    """Caption, head and rows of each table."""
    pairwise = found["form"] == "pairwise"
    value, weighed = ("share of wins", "by competence") if pairwise else ("mean mark", "standardised")
    head = ("model", "of", value, "low", "high", weighed, "items")
    yield "Models, with 95 % intervals over rows", head, _rows(found["models"], _SCORES)
    agreement = ("of", "figure", "value", "low", "high")
    yield "Agreement, with 95 % intervals over rows", agreement, _rows(found["agreement"], agreement)
    people = ("person", "answers", "seconds", "speed", "checks", "failed", "agreement", "competence")
    yield "People", people, _rows(found["people"], _PEOPLE)


def _rows(lines: list[Mapping[str, Any]], names: tuple[str, ...]) -> list[list[Any]]:
    return [[line.get(name) for name in names] for line in lines]  # older runs lack some
