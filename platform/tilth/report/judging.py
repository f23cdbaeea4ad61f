"""What a report shows of judges: whose answers won, how sure that is, and how far the judges can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tilth.report import figures
from tilth.report.svg import Picture, Pictures

#: caption, head, rows
Plain = tuple[str, tuple[str, ...], Sequence[Sequence[Any]]]
_BIASES = {
    "position": "pairs that the place decided",
    "first_place": "of these for the first place",
    "longer_wins": "decided pairs that the longer answer won",
}
_ENDS = ("value", "low", "high", "n")


def pictures_of(pictures: Pictures, detail: Mapping[str, Any]) -> Iterator[Picture]:
    """Ratings and win rates with their intervals, a panel for each judge."""
    for key, title in (("elo", "Bradley-Terry ratings on Elo's scale"), ("marks", "Mean marks")):
        if panels := {name: _lines(item[key]) for name, item in detail["judges"].items() if item.get(key)}:
            yield from figures.forests(pictures, panels, f"{title}, with 95 % intervals", zero=False)


def _lines(found: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    return [{"name": model, **item} for model, item in sorted(found.items(), key=lambda pair: -pair[1]["value"])]


def tables(detail: Mapping[str, Any]) -> Iterator[Plain]:
    """Win rates, ratings and marks, biases, agreement."""
    judges: Mapping[str, Any] = detail["judges"]
    if lines := list(_against(judges)):
        head = (
            "judge",
            "model",
            "win rate",
            "low",
            "high",
            "at equal length",
            "low",
            "high",
            "ties",
            "p",
            "p by Holm",
            "n",
        )
        yield f"Wins over {detail['baseline']}", head, lines
    for key, caption in (("elo", "Ratings"), ("marks", "Marks")):
        lines = [
            (name, model, *(item[end] for end in _ENDS))
            for name, told in judges.items()
            for model, item in told.get(key, {}).items()
        ]
        if lines:
            yield caption, ("judge", "model", *_ENDS), lines
    biases = [
        (name, what, *(told["biases"][key][end] for end in _ENDS))
        for name, told in judges.items()
        for key, what in _BIASES.items()
        if key in told["biases"]
    ]
    if biases:
        yield "What else decided", ("judge", "share of", *_ENDS), biases
    yield from _trust(detail)


def _against(judges: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, told in judges.items():
        for model, item in told.get("against", {}).items():
            if "win_rate" in item:
                rates = (item[key][end] for key in ("win_rate", "lc_win_rate") for end in _ENDS[:3])
                tests = (item["p"], item.get("holm", "–"))  # older runs were not corrected
                yield (name, model, *rates, item["ties"], *tests, item["win_rate"]["n"])


def _trust(detail: Mapping[str, Any]) -> Iterator[Plain]:
    """Agreement with people and among judges, beside that of people with each other; judges of their own answers."""
    agreement = detail["agreement"]
    lines = [
        (f"{name} and the majority of people", item["majority"]) for name, item in _items(agreement, "with_people")
    ]
    lines += [(f"{name} and each person, mean", item["each"]) for name, item in _items(agreement, "with_people")]
    lines += [("people with each other, mean", agreement["people"])] if "people" in agreement else []
    lines += list(_items(agreement, "judges"))
    if lines:
        shown = [(who, item["pairs"], *_with_ends(item, "same"), *_with_ends(item, "kappa")) for who, item in lines]
        head = ("who", "pairs", "say the same", "low", "high", "Cohen's kappa", "low", "high")
        yield "Agreement, with 95 % intervals over rows", head, shown
    rated = [
        (name, item["n"], item["rho"], item.get("low"), item.get("high"), item["p"])
        for name, item in _items(agreement, "ratings")
    ]
    if rated:
        yield "Scores beside people's ratings", ("judge", "answers", "Spearman's rho", "low", "high", "p"), rated
    own = [
        (name, *(item.get(key) for key in ("model", "own", "others", "excess", "low", "high")))
        for name, items in detail["self_preference"].items()
        for item in _each(items)
    ]
    if own:
        columns = ("judge", "its model", "own wins", "by other judges", "excess", "low", "high")
        yield "Judges of their own answers", columns, own


def _with_ends(item: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """A figure and its interval, which older runs lack."""
    return item[key], item.get(f"{key}_low"), item.get(f"{key}_high")


def _each(items: Any) -> Sequence[Mapping[str, Any]]:
    """A judge's own models; older runs told of one alone."""
    return [items] if isinstance(items, Mapping) else items


def _items(found: Mapping[str, Any], key: str) -> Sequence[tuple[str, Any]]:
    return list(found.get(key, {}).items())
