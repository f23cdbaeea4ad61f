"""What a searched field may be, as kinds. Light; a sampler of Optuna draws the numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, Field

from tilth.config import Component, Ref, dump
from tilth.errors import Problem

#: draws of exponential variables stay away from log(0) and from all being 0
_EDGE = 1e-9


class Draws(Protocol):
    """What draws numbers: a trial of Optuna."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str: ...


class Space(Component, family="space"):
    """The values of one field."""

    def draw(self, path: str, draws: Draws) -> Any:
        """A value for the field at `path`."""
        raise TypeError(f"{type(self).__name__} must define draw()")

    def corners(self) -> Sequence[Any]:
        """Values that stand for all: where these hold, the others do."""
        raise TypeError(f"{type(self).__name__} must define corners()")

    def points(self) -> Sequence[Any] | None:
        """Every value, None where they are a continuum."""
        return None

    def drawn(self, path: str, value: Any) -> dict[str, Any]:
        """The numbers that `draw` makes one of its `points` from."""
        raise TypeError(f"{type(self).__name__} has no points")


def _referring(value: Any) -> Any:
    """The same with every "@stage" known as a reference: the search then waits for that stage."""
    if isinstance(value, str):
        return Ref(value) if value.startswith("@") and len(value) > 1 else value
    if isinstance(value, Mapping):
        return {key: _referring(item) for key, item in value.items()}
    return tuple(map(_referring, value)) if isinstance(value, tuple) else value


class Choice(Space):
    """One of the values as they are written: numbers, names, whole components such as `{kind: lora, rank: 8}`."""

    values: Annotated[tuple[Any, ...], AfterValidator(_referring)] = Field(min_length=1, description="What may stand.")

    def draw(self, path: str, draws: Draws) -> Any:
        named = {_label(value): value for value in self.values}
        return dump(named[draws.suggest_categorical(path, tuple(named))])

    def corners(self) -> Sequence[Any]:
        return self.points()

    def points(self) -> Sequence[Any]:
        return [dump(value) for value in self.values]

    def drawn(self, path: str, value: Any) -> dict[str, Any]:
        return {path: _label(value)}

    def check(self) -> list[Problem]:
        labels = [_label(value) for value in self.values]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        return [Problem("values", f"{label} stands twice", "keep one") for label in twice]


def _label(value: Any) -> str:
    return json.dumps(dump(value), sort_keys=True, ensure_ascii=False)


class Uniform(Space):
    """A number from `low` to `high`, each as likely as any other."""

    low: float = Field(description="The smallest.")
    high: float = Field(description="The largest.")

    def draw(self, path: str, draws: Draws) -> float:
        return draws.suggest_float(path, self.low, self.high)

    def corners(self) -> Sequence[float]:
        return [self.low, self.high]

    def check(self) -> list[Problem]:
        return _ordered(self.low, self.high)


class LogUniform(Space):
    """A number from `low` to `high` whose logarithm is uniform: as often from 1e-5 to 1e-4 as from 1e-4 to 1e-3."""

    low: float = Field(gt=0, description="The smallest.")
    high: float = Field(gt=0, description="The largest.")

    def draw(self, path: str, draws: Draws) -> float:
        return draws.suggest_float(path, self.low, self.high, log=True)

    def corners(self) -> Sequence[float]:
        return [self.low, self.high]

    def check(self) -> list[Problem]:
        return _ordered(self.low, self.high)


class Integers(Space):
    """A whole number from `low` to `high`, both included."""

    low: int = Field(description="The smallest.")
    high: int = Field(description="The largest.")
    step: int = Field(1, ge=1, description="Distance between two neighbours.")
    log: bool = Field(False, description="Whether the logarithm is uniform; then step is 1 and low above 0.")

    def draw(self, path: str, draws: Draws) -> int:
        return draws.suggest_int(path, self.low, self.points()[-1], step=self.step, log=self.log)

    def corners(self) -> Sequence[int]:
        return [self.low, self.points()[-1]]

    def points(self) -> Sequence[int]:
        return range(self.low, self.high + 1, self.step)

    def drawn(self, path: str, value: Any) -> dict[str, Any]:
        return {path: value}

    def check(self) -> list[Problem]:
        if self.log and (self.step != 1 or self.low < 1):
            return [Problem("log", "needs step 1 and low above 0", "leave log out, or step")]
        return _ordered(self.low, self.high)


class Simplex(Space):
    """A share for each name; all of them sum to `total`, and every division is as likely as any other.

    That is Dirichlet(1, …, 1), drawn as exponential variables over their sum (Devroye 1986, chapter 11): what Optuna
    searches is a number from 0 to 1 for each name.
    """

    names: tuple[str, ...] = Field(min_length=2, description="What shares: the names of tasks, for one.")
    total: float = Field(1.0, gt=0, description="What all shares sum to.")
    least: float = Field(0.01, ge=0, lt=1, description="Part of the total that each name has at least.")

    def draw(self, path: str, draws: Draws) -> dict[str, float]:
        uniform = [draws.suggest_float(f"{path}.{name}", 0.0, 1.0) for name in self.names]
        exponential = [-math.log(min(max(number, _EDGE), 1 - _EDGE)) for number in uniform]
        return self._divided([each / sum(exponential) for each in exponential])

    def corners(self) -> Sequence[dict[str, float]]:
        return [self._divided([float(name == most) for name in self.names]) for most in self.names]

    def _divided(self, shares: Sequence[float]) -> dict[str, float]:
        free = 1 - self.least * len(self.names)
        return {
            name: round(self.total * (self.least + free * share), 6)
            for name, share in zip(self.names, shares, strict=True)
        }

    def check(self) -> list[Problem]:
        found = []
        if self.least * len(self.names) >= 1:
            what = f"{len(self.names)} names cannot have {self.least:g} of the total each"
            found.append(Problem("least", what, f"use less than {1 / len(self.names):.3g}"))
        if len(set(self.names)) < len(self.names):
            found.append(Problem("names", "one of them stands twice", "keep one"))
        return found


def _ordered(low: float, high: float) -> list[Problem]:
    return [] if low < high else [Problem("high", f"must be above low, but {high:g} is not above {low:g}")]
