"""What training stages have in common: their fields, their checks, and how an artifact comes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tilth.config import EXECUTION, DatasetRef
from tilth.errors import Problem
from tilth.recipe import Stage
from tilth.train.config import Checkpointing, ModelConfig, Optimisation, Scale
from tilth.train.memory import training_bytes
from tilth.train.tasks import Tasks

if TYPE_CHECKING:
    from tilth.runs import Artifact, Out
    from tilth.train.job import Job
    from tilth.weights import Sized


class Training(Stage):
    """A stage that leaves a model. A subclass says which objective a dataset is trained for."""

    produces: ClassVar[str] = "model"

    data: DatasetRef = Field(description="The dataset.")
    split: str = Field("train", description="The split to train on.")
    validation: str | None = Field(None, description="The split whose loss is measured at the end.")
    model: ModelConfig = Field(description="The model, and the adapter on it.")
    tasks: Tasks | None = Field(None, description="Several tasks at once; null: the rows' `task` is not looked at.")
    max_length: int = Field(512, ge=2, description="Tokens of a row; what goes beyond is cut off.")
    optimisation: Optimisation = Field(Optimisation(), description="How weights are changed.")
    checkpointing: Checkpointing = Field(Checkpointing(), json_schema_extra=EXECUTION, description="Checkpoints.")
    scale: Scale = Field(Scale(), json_schema_extra=EXECUTION, description="Workers, devices, micro-batches.")

    def objective_of(self, row_type: str) -> str:
        """classification, language_model or masked_lm for rows of this type; StageError where none fits."""
        raise TypeError(f"{type(self).__name__} must define objective_of()")

    def conditioned_on(self, row_type: str, objective: str) -> bool:
        """Whether texts are trained with their label before them."""
        return False

    def check(self) -> list[Problem]:
        problem = self.scale.batch_problem(self.optimisation.global_batch)
        found = [problem] if problem else []
        model = self.model
        if model.peft:
            found += model.peft.unfit(self.scale)
        if model.freeze and model.freeze.thaw_steps and self.scale.deepspeed:
            what = "gradual unfreezing needs weights that DeepSpeed does not partition beforehand"
            found.append(Problem("model.freeze.thaw_steps", what, "set scale.deepspeed: null, or freeze for good"))
        return [*found, *(self.tasks.unfit(self.scale) if self.tasks else ())]

    def estimate(self, rows: int) -> dict[str, float]:
        """Tokens are an upper bound: every row of full length."""
        optimisation = self.optimisation
        seen = optimisation.steps * optimisation.global_batch if optimisation.steps else rows * optimisation.epochs
        return {"rows": rows, "tokens": int(seen * self.max_length)}

    def memory(self, sized: Sized) -> float | None:
        """Of weights, gradients and optimizer state; activations come on top."""
        weights = sized(self.model.name)
        return None if weights is None else training_bytes(weights, self.model, self.optimisation, self.scale)

    @property
    def base(self) -> str:
        return self.model.name

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        from tilth.train.launch import launch
        from tilth.train.preflight import prepare

        job = prepare(self, out, inputs)
        trained = launch(job)
        return out.artifact(metrics=trained.metrics, counts=trained.counts, detail=self._detail(job, trained.result))

    def _detail(self, job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "base": job.base,
            "peft": self.model.peft.kind if self.model.peft else None,
            "objective": job.objective,
            "labels": list(job.labels),
            "parameters": result["parameters"],
            "max_length": self.max_length,
            "conditioned": job.conditioned,
        }
