"""Where a trial runs: the part of the recipe that leads to the metric, and the run that holds every stage's result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from tilth.errors import ClusterError, Problem, RecipeError, StageStopped, StorageError
from tilth.runs import Artifact, Run
from tilth.search.fit import chain, ends
from tilth.search.places import changed
from tilth.storage import Store, full

if TYPE_CHECKING:
    from tilth.recipe import Recipe
    from tilth.runs import Step
    from tilth.search.stage import Search


Given = TypeVar("Given")
Watched = Callable[["Step"], AbstractContextManager[None]]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: what its stages left, or why they did not."""

    #: stage: fingerprint of what it left
    made: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    #: it was ended early, at the scheduler's wish
    stopped: bool = False


@dataclass(frozen=True)
class Bench:
    """Picklable: another process runs a trial by it as this one does."""

    url: str
    recipe: Recipe
    target: str
    #: the stages that a trial comes to
    ends: tuple[str, ...]
    #: seconds that a trial may take
    limit: float | None

    @staticmethod
    def of(search: Search, recipe: Recipe, run: Run) -> Bench:
        return Bench(run.store.url, chain(search, recipe), search.target, tuple(ends(search)), search.limit)

    @property
    def run(self) -> Run:
        return Run(Store.at(self.url))

    def changed(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial, of the stages that it runs; RecipeError where its values do not go together."""
        try:
            whole = changed(self.recipe, self.target, values)
        except ValidationError as error:
            raise RecipeError(
                [Problem(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
            ) from error
        if found := whole.check():
            raise RecipeError(found)
        return whole.part(self.ends)

    def step(self, recipe: Recipe) -> Step:
        """What the run says of the searched stage of a trial's recipe."""
        steps = self.run.plan(recipe.part([self.target]))
        return next(step for step in steps if step.name == self.target)

    def artifacts(self, made: Mapping[str, str]) -> dict[str, Artifact]:
        """What a trial's stages left; StorageError where something is gone."""
        found = {name: Artifact.read(self.store(name, fingerprint)) for name, fingerprint in made.items()}
        for name, artifact in found.items():
            if artifact is None:
                raise StorageError(f"{self.store(name, made[name]).url} is gone, which a trial left; run again")
        return {name: artifact for name, artifact in found.items() if artifact is not None}

    def store(self, name: str, fingerprint: str) -> Store:
        return self.run.store.sub(f"stages/{name}/{fingerprint[:16]}")

    def attempt(self, values: Mapping[str, Any], watched: Watched | None = None) -> Outcome:
        """Run a trial's stages, `watched` by the step of the searched one."""

        def work() -> Outcome:
            recipe = self.changed(values)
            with watched(self.step(recipe)) if watched is not None else nullcontext():
                built = self.run.build(recipe, recipe.stages)
            return Outcome(made={name: artifact.fingerprint for name, artifact in built.items()})

        return self.guarded(work)

    def guarded(self, work: Callable[[], Given]) -> Given | Outcome:
        """What a part of a trial's work gives, or what comes of the trial where it fails.

        What stages raise is the trial's; a disk or a cluster that fails is the search's.
        """
        try:
            return work()
        except (StorageError, ClusterError):
            raise
        except StageStopped:
            return Outcome(stopped=True)
        except Exception as error:
            if full(error):
                raise StorageError(f"{self.url}: {error}") from error
            return Outcome(error=f"{type(error).__name__}: {error}")


def over(bench: Bench) -> str:
    """What is said of a trial whose time was over."""
    return f"it took longer than its limit of {bench.limit:g} s"
