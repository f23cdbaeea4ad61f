"""Detectors of a training that goes wrong: pure functions of the trace."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tilth.train.ppo.settings import Action, Watchers

Line = Mapping[str, Any]
#: figures that must be finite
WATCHED = ("loss", "grad_norm", "reward", "kl", "entropy")
#: steps before a value loss is compared with those before it
SETTLED = 5


@dataclass(frozen=True)
class Alarm:
    """What a detector found in a step: which, the value, its limit, and what is to be done."""

    detector: str
    value: float
    limit: float
    action: Action

    def told(self) -> dict[str, Any]:
        """Plain data that JSON can hold."""
        found = asdict(self)
        return found if math.isfinite(self.value) else {**found, "value": str(self.value)}

    def __str__(self) -> str:
        return f"{self.detector} is {self.value:.4g}, and its limit {self.limit:g}"


def alarms(watchers: Watchers, line: Line, before: Sequence[float]) -> list[Alarm]:
    """Everything that is wrong with a step, given the value losses of the steps before it."""
    return [*_non_finite(watchers, line), *_beyond(watchers, line), *_value_loss(watchers, line, before)]


def _non_finite(watchers: Watchers, line: Line) -> Iterator[Alarm]:
    for name in WATCHED:
        if not math.isfinite(line[name]):
            yield Alarm(f"non_finite: {name}", line[name], 0.0, watchers.non_finite)


def _beyond(watchers: Watchers, line: Line) -> Iterator[Alarm]:
    if (kl := watchers.kl) and line["kl"] > kl.limit:
        yield Alarm("kl", line["kl"], kl.limit, kl.action)
    if (entropy := watchers.entropy) and line["entropy"] < entropy.limit:
        yield Alarm("entropy", line["entropy"], entropy.limit, entropy.action)
    if (ratio := watchers.ratio) and line["ratio_max"] > ratio.limit:
        yield Alarm("ratio", line["ratio_max"], ratio.limit, ratio.action)


def _value_loss(watchers: Watchers, line: Line, before: Sequence[float]) -> Iterator[Alarm]:
    """The loss by its median so far, once there are steps to compare with."""
    earlier = [value for value in before if math.isfinite(value)]
    if watchers.value_loss is None or len(earlier) < SETTLED:
        return
    usual = statistics.median(earlier)
    if usual > 0 and line["value_loss"] / usual > watchers.value_loss.limit:
        yield Alarm("value_loss", line["value_loss"] / usual, watchers.value_loss.limit, watchers.value_loss.action)
