"""The word lists of the package, in `augment/data/`: pairs of words, first names by origin, rules on phrases."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).with_name("data")
_PAIR = re.compile(r"(?P<left>\S+) (?P<sign><?>) (?P<right>\S+)(?: : (?P<endings>.+))?")


@dataclass(frozen=True)
class Rule:
    """A regular expression and what it gives, with an example: `before` becomes `after`."""

    feature: str
    find: str
    give: str
    before: str
    after: str


@dataclass(frozen=True)
class Group:
    """Whose names a list holds, as readers take them."""

    origin: str
    gender: str


@cache
def pairs(name: str) -> dict[str, str]:
    """What each word of the list becomes, all in lower case; the list's own head explains the notation."""
    found: dict[str, str] = {}
    for line in _lines(name):
        match = _PAIR.fullmatch(line)
        if match is None:
            raise ValueError(f"{name}.txt: {line!r} is neither A <> B nor A > B")
        for ending in (match["endings"] or "-").split():
            left, right = (match[side] + ending.replace("-", "") for side in ("left", "right"))
            found[left] = right
            if match["sign"] == "<>":
                found[right] = left
    return found


@cache
def names() -> dict[Group, tuple[str, ...]]:
    """Lists of first names, all of one length."""
    found: dict[Group, tuple[str, ...]] = {}
    for line in _lines("names"):
        if line.startswith("["):
            group = Group(*line.strip("[]").split())
        else:
            found[group] = (*found.get(group, ()), *line.split())
    return found


@cache
def rules(name: str) -> tuple[Rule, ...]:
    """Rules in the order in which they are applied."""
    text = (_FOLDER / f"{name}.json").read_text(encoding="utf-8")
    return tuple(Rule(**item) for item in json.loads(text)["rules"])


def _lines(name: str) -> Iterator[str]:
    for line in (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()
