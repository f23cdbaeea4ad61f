"""Where people's verdicts and ratings stand in the rows, to hold judges against. Light."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from tilth.config import Component, DataFiles
from tilth.data.schema import Row, value_at
from tilth.errors import Problem, StageError

Outcome = Literal["first", "second", "tie"]
_CODES: dict[str, Outcome] = {"1": "first", "2": "second", "0": "tie"}
#: an outcome as the share of a win that the first answer has
WON: dict[Outcome, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}


Pair = tuple[str, str, str]  # row id, first model, second model
#: the first model's share of a win
Outcomes = dict[Pair, float]


class Verdicts(Component):
    """What people said of two models' answers to each row; a row may lack some of them."""

    columns: tuple[str, ...] = Field(min_length=1, description="A column or dotted path for each person.")
    models: tuple[str, str] = Field(description="The models that they compared, the first and the second.")
    codes: dict[str, Outcome] = Field(_CODES, min_length=1, description="What stands there → outcome.")

    def of(self, row: Row) -> list[float | None]:
        """Each person's verdict as the first model's share of a win; None where there is none."""
        return [self._outcome(row, value_at(row, column)) for column in self.columns]

    def _outcome(self, row: Row, value: object) -> float | None:
        if value is None:
            return None
        if str(value) not in self.codes:
            raise StageError(
                f"row {row['id']}: {value!r} is no verdict; people.verdicts.codes knows {list(self.codes)}"
            )
        return WON[self.codes[str(value)]]


class People(Component):
    """People's judgements of the same answers."""

    verdicts: Verdicts | None = Field(None, description="Which of two answers is better.")
    ratings: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Model → columns or dotted paths with the numbers that its answer was given."
    )

    campaign: DataFiles | None = Field(
        None, description="What people said of this evaluation in `tilth annotate`: its exported `answers` (.jsonl)."
    )

    def check(self) -> list[Problem]:
        if self.verdicts is None and not self.ratings and self.campaign is None:
            what = "people without verdicts, ratings or a campaign say nothing"
            return [Problem("verdicts", what, "give one of the three")]
        return []

    def rating(self, row: Row, model: str) -> float | None:
        """The mean rating of a model's answer to a row; None where nobody rated it."""
        found = [value_at(row, column) for column in self.ratings.get(model, ())]
        numbers = [float(value) for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
        return sum(numbers) / len(numbers) if numbers else None


def majority(verdicts: Sequence[float | None]) -> float | None:
    """What most people said; a tie between outcomes is a tie; None where nobody said anything."""
    known = [verdict for verdict in verdicts if verdict is not None]
    if not known:
        return None
    counts = {value: known.count(value) for value in known}
    best = [value for value, count in counts.items() if count == max(counts.values())]
    return best[0] if len(best) == 1 else 0.5
