"""Budgets: limits at which a stage stops cleanly, with a valid dataset of what it has by then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field

from tilth.config import Component
from tilth.errors import Problem
from tilth.generate.base import JUDGE

#: values short of a balance that are named one by one
_NAMED = 8


class Budget(Component):
    """The first limit that is reached ends the stage; tokens and cost include those of rejected rows and of judges."""

    max_tokens: int | None = Field(None, ge=1, description="Tokens of prompts and completions, a judge's too.")
    max_rows: int | None = Field(None, ge=1, description="Rows made, the rejected ones included.")
    max_hours: float | None = Field(None, gt=0, description="Hours of work on this stage, over all resumptions.")
    max_cost: float | None = Field(None, gt=0, description="In the currency of the prices.")
    prompt_price: float = Field(0.0, ge=0, description="Price of a million prompt tokens.")
    completion_price: float = Field(0.0, ge=0, description="Price of a million completion tokens.")
    judge_prompt_price: float | None = Field(
        None, ge=0, description="The same of a judge among the steps; none: as prompt_price."
    )
    judge_completion_price: float | None = Field(
        None, ge=0, description="The same of a judge among the steps; none: as completion_price."
    )

    def check(self) -> list[Problem]:
        if self.max_cost is None or any(self.prices.values()):
            return []
        return [Problem("max_cost", "cannot be kept without prices", "set prompt_price and completion_price")]

    def cost(self, usage: Mapping[str, int]) -> float:
        """What the tokens cost."""
        return sum(usage.get(name, 0) * price for name, price in self.prices.items()) / 1e6

    @property
    def prices(self) -> dict[str, float]:
        """Prices of a million tokens, by the names that rows count them under."""
        own = {"prompt_tokens": self.prompt_price, "completion_tokens": self.completion_price}
        judge = (self.judge_prompt_price, self.judge_completion_price)
        return own | {
            f"{JUDGE}{name}": price if given is None else given
            for (name, price), given in zip(own.items(), judge, strict=True)
        }


@dataclass
class Meter:
    """What was spent in finished rounds; `exceeded` adds the round under way."""

    budget: Budget
    rows: int = 0
    seconds: float = 0.0
    #: seconds that earlier processes spent on the round under way
    before: float = 0.0
    usage: dict[str, int] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def add(self, rows: int, usage: Mapping[str, int], seconds: float = 0.0) -> None:
        """Count a finished round; the time of the next begins."""
        self.began, self.before = time.monotonic(), 0.0
        self.rows += rows
        self.seconds += seconds
        for name, amount in usage.items():
            self.usage[name] = self.usage.get(name, 0) + amount

    @property
    def under_way(self) -> float:
        """Seconds spent on the round under way."""
        return self.before + time.monotonic() - self.began

    @property
    def elapsed(self) -> float:
        """Seconds of earlier processes and of this one."""
        return self.seconds + self.under_way

    def exceeded(self, rows: int = 0, usage: Mapping[str, int] | None = None) -> str | None:
        """The limit that is reached, with the figures; None while there is none."""
        usage = usage or {}
        spent = {name: self.usage.get(name, 0) + usage.get(name, 0) for name in {*self.usage, *usage}}
        tokens = sum(spent.values())
        figures = (
            ("max_tokens", self.budget.max_tokens, tokens),
            ("max_rows", self.budget.max_rows, self.rows + rows),
            ("max_hours", self.budget.max_hours, self.elapsed / 3600),
            ("max_cost", self.budget.max_cost, self.budget.cost(spent)),
        )
        for name, limit, value in figures:
            if limit is not None and value >= limit:
                return f"{name}: {value:,.4g} of {limit:,.4g}"
        return None


def lacking(short: Mapping[str, int]) -> str:
    """What the balance still lacks, to stand at the end of a sentence; empty where it lacks nothing."""
    if not short:
        return ""
    worst = sorted(short.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(worst) - _NAMED:,} other values" if len(worst) > _NAMED else ""
    named = ", ".join(f"{count:,} of {value!r}" for value, count in worst[:_NAMED])
    return f"; {sum(short.values()):,} rows short of the balance: {named}{more}"
