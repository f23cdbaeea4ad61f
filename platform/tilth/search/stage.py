"""The stage that searches for the values of other stages' fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from tilth.config import EXECUTION, Component, Ref
from tilth.errors import Problem
from tilth.recipe import Recipe, Stage
from tilth.search.measures import Measure, Objective
from tilth.search.places import grid
from tilth.search.runners import OneByOne, Runner
from tilth.search.schedulers import Scheduler
from tilth.search.searchers import Searcher, Tpe
from tilth.search.space import Space

if TYPE_CHECKING:
    from tilth.runs import Artifact, Out


def _searched(text: str) -> Ref:
    name = text.removeprefix("@")
    if not name:
        raise PydanticCustomError("ref", "must name the stage whose fields are searched")
    return Ref(f"@{name}")


class Repeats(Component):
    """The best trials, and the recipe as it is written, once more with seeds that the search did not see.

    A search picks what scored best, luck included. Only seeds of their own tell how much of a lead was luck: means
    are compared by a paired t-test, seed by seed. A run that fails is left out, and only finalists that finished with
    the most seeds can win.
    """

    seeds: tuple[int, ...] = Field(min_length=2, description="Each finalist runs with each of these seeds.")
    path: str = Field("optimisation.seed", min_length=1, description="The field that takes the seed.")
    finalists: int = Field(2, ge=1, description="The best so many trials are finalists.")


class Search(Stage):
    """Searches the fields of a stage, and of those before it, for what scores best; leaves what that stage then left.

    A trial is the part of the recipe that leads to the metric, with other values: stages that these do not reach are
    reused, and every trial's stages lie in the run as if the recipe had been written so. The recipe as written is a
    candidate too. Nothing here looks at the test split: a stage behind this one scores the winner there, once.
    """

    # fewer finished seeds do not win; what lies outside applies first; what is trained to its end in a pack is scored,
    # by patience too; in a component that null is chosen for nothing is searched
    version: ClassVar[int] = 5

    stage: Annotated[str, Field(min_length=1), AfterValidator(_searched)] = Field(
        description="The stage whose fields are searched, and whose result is left."
    )
    space: dict[str, Space] = Field(min_length=1, description="Dotted path in that stage, or from `stages`: values.")
    metric: Measure = Field(
        description="STAGE/FIGURE, or a figure of the searched stage itself; its time is refused with runner: packed."
    )
    mode: Literal["min", "max"] = Field("max", description="Whether less of it is better, or more.")
    also: tuple[Objective, ...] = Field((), description="Further objectives; what is left is the best by `metric`.")
    trials: int | None = Field(None, ge=1, description="Trials; null: every point of a grid.")
    searcher: Searcher = Field(Tpe(), description="Who decides what is tried next.")
    scheduler: Scheduler | None = Field(None, description="Who ends poor trials early; null: each runs to its end.")
    repeats: Repeats | None = Field(None, description="Seeds that tell a lead from luck; null: one run of each.")
    seed: int = Field(0, ge=0, description="Seed of the searcher.")
    limit: float | None = Field(
        None, gt=0, json_schema_extra=EXECUTION, description="Seconds that a trial may take; null: any."
    )
    runner: Runner = Field(OneByOne(), json_schema_extra=EXECUTION, description="How trials are run.")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """All of them, the one that decides first."""
        return Objective(metric=self.metric, mode=self.mode), *self.also

    @property
    def target(self) -> str:
        """The name of the searched stage."""
        return self.stage[1:]

    @property
    def stands_for(self) -> Ref:
        return Ref(self.stage)

    @property
    def made_from(self) -> str:
        return self.stage

    def check(self) -> list[Problem]:
        return [*self._searcher_problems(), *self._objective_problems()]

    def _searcher_problems(self) -> Iterator[Problem]:
        endless = [path for path, space in self.space.items() if space.points() is None]
        if self.searcher.lists and endless:
            yield Problem(f"space.{endless[0]}", "has no points for a grid", "give choices or integers, or take tpe")
        if not self.searcher.lists and self.trials is None:
            yield Problem("trials", "is missing", "only a grid knows how many there are")

    def _objective_problems(self) -> Iterator[Problem]:
        if self.also and self.scheduler is not None:
            what = "compares trials by one figure, but there are several objectives"
            yield Problem("scheduler", what, "set scheduler: null, or also: []")
        names = [objective.metric for objective in self.objectives]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Problem("also", f"{name} is an objective twice", "keep one")

    def check_within(self, recipe: Recipe) -> list[Problem]:
        from tilth.search.fit import unfit

        return list(unfit(self, recipe))

    def count(self, recipe: Recipe) -> int:
        """Trials, without repeats."""
        if not self.searcher.lists:
            return self.trials or 0
        points = len(grid(recipe.part([self.target]), self.target, self.space))
        return min(points, self.trials or points)

    def runs_again(self, recipe: Recipe) -> dict[str, int]:
        from tilth.search.fit import reached

        trials = self.count(recipe)
        if self.repeats is not None:
            trials += len(self.repeats.seeds) * (1 + min(self.repeats.finalists, trials))
        return dict.fromkeys(reached(self, recipe), trials)

    def estimate(self, rows: Mapping[str, int]) -> dict[str, Any]:
        return {}

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        """Search, choose and leave the winner; StageError where no trial came to an end."""
        from tilth.search.searching import search

        return search(self, out, inputs)
