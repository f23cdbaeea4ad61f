"""What a report says of a generating stage: how it ended, what each round kept and cost, and what a probe foretold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tilth.generate.base import JUDGE
from tilth.generate.budget import lacking
from tilth.report import figures
from tilth.report.svg import Picture, Pictures

Rows = list[tuple[Any, ...]]
ROUND_HEAD = ("round", "made", "kept", "prompt tokens", "completion tokens", "seconds")
FORETOLD_HEAD = ("figure", "foretold by the probe", "actual")


def ended(detail: Mapping[str, Any]) -> str:
    """Why the stage stopped and what its balance lacks, in a sentence."""
    name, _, what = str(detail["ended"]).partition(": ")
    short = lacking(detail.get("short", {}))
    return f"It ended with {name} ({what}), after {len(detail['rounds'])} rounds and {detail['seconds']:,.0f} s{short}."


def rounds(detail: Mapping[str, Any]) -> Rows:
    """A line for each round, under ROUND_HEAD."""
    return [
        (
            number,
            item["made"],
            item["accepted"],
            _tokens(item["usage"], "prompt_tokens"),
            _tokens(item["usage"], "completion_tokens"),
            item["seconds"],
        )
        for number, item in enumerate(detail["rounds"], 1)
    ]


def _tokens(usage: Mapping[str, int], name: str) -> int:
    """Those of the model that made the rows and of judges."""
    return usage.get(name, 0) + usage.get(f"{JUDGE}{name}", 0)


def foretold(detail: Mapping[str, Any]) -> Rows:
    """Lines under FORETOLD_HEAD, none where no probe was made before the run."""
    probe = detail.get("probe") or {}
    actual = {
        "rows": sum(item["accepted"] for item in detail["rounds"]),
        "tokens": sum(detail["usage"].values()),
        "cost": detail["cost"],
        "seconds": detail["seconds"],
    }
    return [(name, probe[name], value) for name, value in actual.items() if name in probe]


def growth(pictures: Pictures, detail: Mapping[str, Any], stage: str) -> list[Picture]:
    """Rows kept by round, and the share of those made; nothing for a single round."""
    history: Sequence[Mapping[str, Any]] = detail["rounds"]
    return [figures.growth(pictures, history, f"Rows that {stage} kept, round by round")] if len(history) > 1 else []
