"""How often each task is seen: sampling as kinds. Light; `schedule` turns rates into an order of rows.

Rates are relative: a task of rate 2 is seen twice as often as one of rate 1, whatever its size.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from tilth.config import Component
from tilth.errors import Problem


class Sampling(Component, family="sampling"):
    """The rate of each task, from its training rows and from how far training is."""

    def rates(self, sizes: Mapping[str, int], progress: float) -> dict[str, float]:
        """Rates above 0 of every task of `sizes`; `progress` runs from 0 (first step) to 1 (last)."""
        raise TypeError(f"{type(self).__name__} must define rates()")

    def missing(self, tasks: set[str]) -> set[str]:
        """Tasks of the data that have no rate, and names with a rate that are no task of the data."""
        return set()


class Proportional(Sampling):
    """Each task as often as it has rows."""

    def rates(self, sizes: Mapping[str, int], progress: float) -> dict[str, float]:
        return {task: float(rows) for task, rows in sizes.items()}


class Equal(Sampling):
    """Each task as often as any other."""

    def rates(self, sizes: Mapping[str, int], progress: float) -> dict[str, float]:
        return dict.fromkeys(sizes, 1.0)


class Temperature(Sampling):
    """Rows to the power 1 / temperature: 1 is proportional, larger is more equal (T5: Raffel et al. 2020, 1910.10683).

    Multilingual BERT and mT5 write it as an exponent: alpha = 1 / temperature.
    """

    temperature: float = Field(2.0, gt=0, description="1: proportional; the larger, the more equal.")
    cap: int | None = Field(None, ge=1, description="Rows that a task counts for at most.")

    def rates(self, sizes: Mapping[str, int], progress: float) -> dict[str, float]:
        return {task: min(rows, self.cap or rows) ** (1 / self.temperature) for task, rows in sizes.items()}


class Capped(Sampling):
    """Examples-proportional with a limit (T5: Raffel et al. 2020, arXiv:1910.10683, section 3.5.2)."""

    cap: int = Field(ge=1, description="Rows that a task counts for at most; all its rows are used.")

    def rates(self, sizes: Mapping[str, int], progress: float) -> dict[str, float]:
        return {task: float(min(rows, self.cap)) for task, rows in sizes.items()}


class Explicit(Sampling):
    """Rates as given."""

    values: dict[str, float] = Field(min_length=1, description="Task: its rate, relative to the others.")

    def check(self) -> list[Problem]:
        return [
            Problem(f"values.{task}", f"must be above 0, not {rate:g}", "leave a task without rate out of the data")
            for task, rate in self.values.items()
            if rate <= 0
        ]

    def rates(self, sizes: Mapping[str, int], progress: float) -> dict[str, float]:
        return {task: self.values[task] for task in sizes}

    def missing(self, tasks: set[str]) -> set[str]:
        return tasks ^ set(self.values)


class Annealed(Sampling):
    """From proportional to more equal as training goes on (Stickland & Murray 2019, arXiv:1902.02671).

    Rates are rows to the power `1 - progress x (1 - final)`. The paper ends at 0.2.
    """

    final: float = Field(0.0, ge=0, le=1, description="Exponent of the rows at the last step; 0: equal.")

    def rates(self, sizes: Mapping[str, int], progress: float) -> dict[str, float]:
        exponent = 1 - progress * (1 - self.final)
        return {task: rows**exponent for task, rows in sizes.items()}
