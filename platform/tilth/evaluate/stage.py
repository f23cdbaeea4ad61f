"""The stage that scores models on one split of a dataset, with intervals and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tilth.config import EXECUTION, Component, DatasetRef, ModelRef
from tilth.data.memory import in_all_workers, model_bytes
from tilth.data.transform import Resources
from tilth.errors import Problem
from tilth.recipe import Stage

if TYPE_CHECKING:
    from tilth.runs import Artifact, Out
    from tilth.weights import Sized


class Bootstrap(Component):
    """How intervals and tests are drawn."""

    samples: int = Field(2000, ge=100, le=100_000, description="Resamples of the rows, and swaps of a test.")
    seed: int = Field(0, ge=0, description="Seed of the resamples.")


class Evaluate(Stage):
    """Scores each model on the same rows; the score follows from what the model is.

    A classifier gets accuracy, macro and micro precision, recall and F1 and a confusion matrix, a language model
    its perplexity. Every score has a 95 % bootstrap interval. With a baseline, every other model is compared to
    it row by row. Rows of several tasks are scored task by task too; with `single`, models of several tasks are
    compared with each task's own, and tasks that are better kept apart are named. Predictions stay as datasets under
    `predictions/MODEL`.
    """

    produces: ClassVar[str] = "report"

    models: dict[str, ModelRef] = Field(min_length=1, description="Name in the report → @stage, hub name or directory.")
    data: DatasetRef = Field(description="The dataset whose split is scored.")
    split: str = Field("test", pattern="^(train|validation|test)$", description="The split that is scored.")
    baseline: str | None = Field(None, description="The model that the others are compared to; one of `models`.")
    single: dict[str, str] = Field(
        default_factory=dict,
        description="Task: the model trained on it alone, one of `models`; the others are compared with it there.",
    )
    bootstrap: Bootstrap = Field(default_factory=Bootstrap, description="Intervals and tests.")
    dtype: Literal["float32", "auto"] = Field(
        "float32", description="float32: the same score however rows are batched; auto: as the weights are stored."
    )
    batch_tokens: int = Field(
        2048, ge=1, json_schema_extra=EXECUTION, description="Padded tokens of one forward pass; bounds memory."
    )
    resources: Resources = Field(
        default_factory=Resources, json_schema_extra=EXECUTION, description="Where predictions run."
    )

    def check(self) -> list[Problem]:
        """The baseline must be one of the models, and names must do as directories and keys of metrics."""
        problems = [
            Problem(f"models.{name}", "holds a character that a metric's name cannot", "use letters, digits, . _ -")
            for name in self.models
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        ]
        if self.baseline is not None and self.baseline not in self.models:
            fits = ", ".join(self.models)
            problems.append(Problem("baseline", f"{self.baseline!r} is none of the models", f"use one of: {fits}"))
        if self.baseline is not None and len(self.models) < 2:
            problems.append(Problem("baseline", "there is no other model to compare with it", "add one to models"))
        return [*problems, *self._singles()]

    def _singles(self) -> list[Problem]:
        fits = ", ".join(self.models)
        problems = [
            Problem(f"single.{task}", f"{name!r} is none of the models", f"use one of: {fits}")
            for task, name in self.single.items()
            if name not in self.models
        ]
        if self.single and not problems and set(self.models) <= set(self.single.values()):
            problems.append(Problem("single", "no model of several tasks is left to compare", "add one to models"))
        return problems

    def memory(self, sized: Sized) -> float | None:
        """Of the largest model: one is loaded after another."""
        found = model_bytes(self, sized, self.resources)
        return in_all_workers(max(found.values()), self.resources) if found else None

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        """Predict with each model, then score; StageError when the split is empty or a row cannot be predicted."""
        from tilth.evaluate.running import evaluate

        return evaluate(self, out, inputs)
