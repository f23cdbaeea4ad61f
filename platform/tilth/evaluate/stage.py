"""The stage that scores models on one split of a dataset, with intervals and paired comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth.config import EXECUTION, Component, DatasetRef, ModelRef
from tilth.data.memory import in_all_workers, model_bytes
from tilth.data.transform import Resources
from tilth.errors import Problem
from tilth.evaluate.tasks.base import Task
from tilth.evaluate.tasks.forward import Forward
from tilth.evaluate.training import TrainedOn
from tilth.problems import nearest
from tilth.recipe import Stage

if TYPE_CHECKING:
    from tilth.generate.base import Generator
    from tilth.runs import Artifact, Out
    from tilth.weights import Sized


SLICES = ("label", "length", "task", "origin")


class Bootstrap(Component):
    """How intervals and tests are drawn."""

    samples: int = Field(2000, ge=100, le=100_000, description="Resamples of the rows, and swaps of a test.")
    seed: int = Field(0, ge=0, description="Seed of the resamples.")


class Evaluate(Stage):
    """Scores each model on the same rows; what it is put to is the `task`, and what is measured follows from it.

    By default a classifier gets accuracy and macro F1 with a confusion matrix, a tagger F1 of entities, a model that
    answers by spans SQuAD's F1 and exact match, a language model its perplexity and bits per byte; the task
    `generation` has models write answers, `choices` has them rank. Forward passes are transformers' in the worker; a
    language model that needs several GPUs is named in the task's `generators` and read by vLLM. Every score has a 95 %
    bootstrap interval. With a baseline, every other model is compared to it row by row, and p is corrected for all
    these tests together. Rows of several tasks are scored task by task too; with `single`, models of several tasks are
    compared with each task's own, and tasks that are better kept apart are named. What models said stays as datasets
    under `predictions/MODEL`, every row once, whatever dies.
    """

    produces: ClassVar[str] = "report"
    # failed rows count; continuations keep their indent; long rows end as in training; shots show choices of their own;
    # transfer between models of different tokens is told by the byte; the worst rows are wrong ones, and parts of the
    # rows have no figure where a metric says nothing of them; tests are corrected for all of them together
    version: ClassVar[int] = 6
    #: the version since which models are asked the same; what they said in an earlier run since then holds
    asks: ClassVar[int] = 4

    models: dict[str, ModelRef] = Field(
        default_factory=dict, description="Name in the report → @stage, hub name or directory."
    )
    data: DatasetRef = Field(description="The dataset whose split is scored.")
    task: Task = Field(default_factory=Forward, description="What the models are put to.")
    split: str = Field("test", pattern="^(train|validation|test)$", description="The split that is scored.")
    baseline: str | None = Field(None, description="The model that the others are compared to; one of `models`.")
    slices: tuple[str, ...] = Field(
        (), description="Parts scored by themselves: label, length, task, origin, or a dotted path such as meta.source."
    )
    trained_on: TrainedOn | None = Field(
        None, description="Rows that models were trained on: contamination is counted, errors are set beside them."
    )
    single: dict[str, str] = Field(
        default_factory=dict,
        description="Task: the model trained on it alone, one of `models`; the others are compared with it there.",
    )
    bootstrap: Bootstrap = Field(default_factory=Bootstrap, description="Intervals and tests.")
    dtype: Literal["float32", "auto"] = Field(
        "float32",
        description="Of forward passes. float32: the same score however rows are batched; auto: as weights are stored. "
        "Generators have their own.",
    )
    batch_tokens: int = Field(
        2048, ge=1, json_schema_extra=EXECUTION, description="Padded tokens of one forward pass; bounds memory."
    )
    resources: Resources = Field(
        default_factory=Resources, json_schema_extra=EXECUTION, description="Where predictions run."
    )

    @property
    def named(self) -> dict[str, str | Generator]:
        """All models by name: those of `models`, and generators of the task."""
        return {**self.models, **self.task.generators}

    @property
    def asked_for(self) -> object:
        """What models are asked for, whatever is measured of it: the version, and whether of all labels."""
        return [self.asks, "probabilities"] if self.task.tells_all else self.asks

    def check(self) -> list[Problem]:
        """The baseline must be one of the models, and names must do as directories and keys of metrics."""
        return [*self._names(), *self._baseline(), *self._singles()]

    def _names(self) -> Iterator[Problem]:
        if not self.named:
            yield Problem("models", "names no model, nor does the task", "name one or more")
        for name in self.named:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                mend = "use letters, digits, . _ -"
                yield Problem(f"models.{name}", "holds a character that a metric's name cannot", mend)
        for name in self.models.keys() & self.task.generators.keys():
            yield Problem(f"models.{name}", "names two models: the task has one of that name", "rename one")
        for place, name in enumerate(self.slices):
            if name not in SLICES and "." not in name:
                mend = nearest(name, (*SLICES, "meta.NAME"))
                yield Problem(f"slices.{place}", f"{name!r} is no part that rows have", mend)
        if self.task.shown == self.split:
            what = f"shows rows of {self.split}, the split that is scored"
            yield Problem("task.shots.split", what, "show those of another split")

    def _baseline(self) -> Iterator[Problem]:
        if self.baseline is not None and self.baseline not in self.named:
            fits = ", ".join(self.named)
            yield Problem("baseline", f"{self.baseline!r} is none of the models", f"use one of: {fits}")
        if self.baseline is not None and len(self.named) < 2:
            yield Problem("baseline", "there is no other model to compare with it", "add one to models")

    def _singles(self) -> list[Problem]:
        fits = ", ".join(self.named)
        problems = [
            Problem(f"single.{task}", f"{name!r} is none of the models", f"use one of: {fits}")
            for task, name in self.single.items()
            if name not in self.named
        ]
        if self.single and not problems and set(self.named) <= set(self.single.values()):
            problems.append(Problem("single", "no model of several tasks is left to compare", "add one to models"))
        return problems

    def estimate(self, rows: Mapping[str, int]) -> dict[str, Any]:
        return {"rows": rows.get(self.split, 0)}

    def work(self, rows: Mapping[str, int], before: Artifact) -> tuple[int, int]:
        return rows.get(self.split, 0), before.counts.get("rows", 0)

    def memory(self, sized: Sized) -> float | None:
        """Of the largest model: one is loaded after another."""
        found = model_bytes(self, sized, self.resources)
        return in_all_workers(max(found.values()), self.resources) if found else None

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        """Predict with each model, then score; StageError when the split is empty or a row cannot be predicted."""
        from tilth.evaluate.running import evaluate

        return evaluate(self, out, inputs)
