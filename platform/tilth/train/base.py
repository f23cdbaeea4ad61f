"""What training stages have in common: their fields, their checks, and how an artifact comes of them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth import ui
from tilth.config import EXECUTION, DatasetRef
from tilth.errors import Problem
from tilth.nodes import Workers
from tilth.recipe import Figures, Stage
from tilth.train.config import Checkpointing, Fillers, ModelConfig, Optimisation, Scale, Validation
from tilth.train.forgetting import Forgetting, Probe
from tilth.train.memory import Footprint, activation_bytes, footprint, training_bytes
from tilth.train.tasks import Tasks

if TYPE_CHECKING:
    from tilth.runs import Artifact, Out
    from tilth.storage import Store
    from tilth.train.checkpoint import Link
    from tilth.train.job import Job
    from tilth.train.launch import Trained
    from tilth.weights import Sized


Tracker = Literal["tensorboard", "wandb", "mlflow"]
#: what of a worker's result an artifact tells as it is
REPORTED = ("probes", "micro_batch", "range_test", "pairs")


class Training(Stage):
    """A stage that leaves a model. A subclass says which objective a dataset is trained for."""

    produces: ClassVar[str] = "model"

    data: DatasetRef = Field(description="The dataset.")
    split: str = Field("train", description="The split to train on.")
    validation: Validation | None = Field(None, description="Held-out rows: their split, or what is made of them.")
    model: ModelConfig = Field(description="The model, and the adapter on it.")
    tasks: Tasks | None = Field(None, description="Several tasks at once; null: the rows' `task` is not looked at.")
    max_length: int = Field(512, ge=2, description="Tokens of a row; what goes beyond is cut off.")
    optimisation: Optimisation = Field(Optimisation(), description="How weights are changed.")
    checkpointing: Checkpointing = Field(Checkpointing(), json_schema_extra=EXECUTION, description="Checkpoints.")
    scale: Scale = Field(Scale(), json_schema_extra=EXECUTION, description="Workers, devices, micro-batches.")

    trackers: tuple[Tracker, ...] = Field(
        ("tensorboard",), json_schema_extra=EXECUTION, description="Who is told of the figures of every step."
    )

    def objective_of(self, row_type: str) -> str:
        """classification, language_model or masked_lm for rows of this type; StageError where none fits."""
        raise TypeError(f"{type(self).__name__} must define objective_of()")

    def trainer(self) -> Callable[[Job, Link], None]:
        """What every worker does; heavy, so loaded when it is asked for."""
        from tilth.train.worker import train

        return train

    def figures(self, result: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Metrics that are this stage's own, from a worker's result and the trace."""
        return {}

    def conditioned_on(self, row_type: str, objective: str) -> bool:
        """Whether texts are trained with their label before them."""
        return False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of a new head, where they are not the labels of the rows."""
        return ()

    @property
    def splits(self) -> tuple[str, str | None]:
        """The split to train on and the one to validate on."""
        return self.split, self.validation.split if self.validation else None

    @property
    def learns(self) -> str:
        """Which tokens of a row are learnt: completion, assistant or all."""
        return "completion"

    @property
    def forgets(self) -> Forgetting:
        """What is done about forgetting."""
        return Forgetting()

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What the model is asked before training and after."""
        return self.forgets.probes

    @property
    def pack_length(self) -> int | None:
        """Tokens of a pack; None where rows are not packed."""
        return None

    def check(self) -> list[Problem]:
        problem = self.scale.batch_problem(self.optimisation.global_batch)
        found = [*filter(None, [problem]), *self._absent_trackers()]
        model = self.model
        if model.peft:
            found += model.peft.unfit(self.scale)
        if model.freeze and model.freeze.thaw_steps and self.scale.deepspeed:
            what = "gradual unfreezing needs weights that DeepSpeed does not partition beforehand"
            found.append(Problem("model.freeze.thaw_steps", what, "set scale.deepspeed: null, or freeze for good"))
        return [*found, *self._of_whole_weights(), *(self.tasks.unfit(self.scale) if self.tasks else ())]

    def _of_whole_weights(self) -> Iterator[Problem]:
        partitioned = self.scale.zero is not None and self.scale.zero.stage == 3
        if self.optimisation.averaging and partitioned:
            what = "ZeRO stage 3 leaves no worker whole weights to average"
            yield Problem("optimisation.averaging", what, "use scale.deepspeed.stage: 2, or averaging: null")
        if self.validation and self.validation.answers and partitioned:
            what = "ZeRO stage 3 leaves no worker whole weights to answer with"
            yield Problem("validation.answers", what, "use scale.deepspeed.stage: 2, or answers: null")
        if self.optimisation.learning_rate == "auto" and (partitioned or self.tasks):
            what = "the range test learns from whole weights, and from the rows of one task"
            yield Problem("optimisation.learning_rate", what, "set a number, or leave out ZeRO stage 3 and tasks")

    def _absent_trackers(self) -> Iterator[Problem]:
        for name in self.trackers:
            if importlib.util.find_spec(name) is None:
                mend = f"install it (pip install {name}) or leave it out"
                yield Problem("trackers", f"{name} is not installed", mend)

    def estimate(self, rows: Mapping[str, int]) -> dict[str, Any]:
        """Tokens are an upper bound: every row of full length."""
        optimisation, own = self.optimisation, rows.get(self.split, 0)
        seen = optimisation.steps * optimisation.global_batch if optimisation.steps else own * optimisation.epochs
        return {"rows": own, "tokens": int(seen * ((optimisation.steps and self.pack_length) or self.max_length))}

    def work(self, rows: Mapping[str, int], before: Artifact) -> tuple[int, int] | None:
        """Rows of the split, of which so many steps as are set see no more."""
        return None if self.optimisation.steps else (rows.get(self.split, 0), before.counts.get("rows", 0))

    def memory(self, sized: Sized) -> float | None:
        """Of weights, gradients and optimizer state; activations come on top."""
        weights = sized(self.model.name)
        return None if weights is None else training_bytes(weights, self.model, self.optimisation, self.scale)

    @property
    def made_from(self) -> str:
        return self.model.name

    @property
    def micro_batch_counts(self) -> bool:
        """Whether the result depends on how many rows are taken at once, so that no fewer may be."""
        return False

    @property
    def fillers(self) -> Fillers | None:
        """Rows that only fill up a batch, where a mean over the batch counts them; None: it does not."""
        return None

    @property
    def at_work(self) -> tuple[Workers, ...]:
        scale = self.scale
        return (Workers(scale.each, max(1, scale.workers), scale.nodes.selector, scale.min_workers),)

    @property
    def tells(self) -> tuple[str, ...]:
        return ("validation_loss",) if self.validation and self.validation.every_steps else ()

    def course(self, store: Store) -> Sequence[Figures]:
        """While it runs the losses on held-out rows; once it is done those of every step too."""
        from tilth.train import trace
        from tilth.train.job import PROGRESS

        if (progress := store.read_json(PROGRESS)) is not None:
            return [(step, {"validation_loss": loss}) for step, loss in progress.get("measured", ())]
        lines = trace.read(store) if store.exists(trace.TRACE) else []
        names = ("loss", "validation_loss")
        return [(line["step"], {name: line[name] for name in names if name in line}) for line in lines]

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        from tilth.train.preflight import prepare

        job = prepare(self, out, inputs)
        if (held := self._footprint(job)) is not None:
            method = self.model.peft.kind if self.model.peft else "freeze" if self.model.freeze else "all weights"
            ui.reporter().say(f"{out.stage}: {method}: {held}", event="footprint", **vars(held))
        return self.made(out, job, self.trained(job))

    def made(self, out: Out, job: Job, trained: Trained) -> Artifact:
        """The artifact of a job that is done, its model's card written."""
        from tilth.data.dataset import Dataset
        from tilth.train.card import README, lineage, model_card

        made = out.artifact(metrics=trained.metrics, counts=trained.counts, detail=self._detail(job, trained.result))
        rows = lineage(Dataset.open(job.data), self.split)
        card = model_card(made, self, rows, "peft" if self.model.peft else "transformers")
        out.store.write(f"model/{README}", card.encode("utf-8", "replace"))
        return made

    def trained(self, job: Job) -> Trained:
        """Put the job on workers and wait for it."""
        from tilth.train.launch import launch

        return launch(job)

    def _footprint(self, job: Job) -> Footprint | None:
        """What the job will train and hold, None where the model's files do not tell."""
        from tilth.weights import in_folder

        folder = job.inputs.model(self.model.name)
        weights = in_folder(folder)
        if weights is None:
            return None
        file = folder / "config.json"
        shape = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        batches = self.scale.batches(self.optimisation.global_batch)
        tokens = (
            (batches.micro if batches else 1)
            * self.max_length
            * (2 if job.objective in ("preference", "unpaired", "reward") else 1)
        )
        held = footprint(weights, self.model, self.optimisation, self.scale)
        activations = activation_bytes(shape, tokens, self.optimisation, self.scale, job.objective)
        return replace(held, activations=activations)

    def _detail(self, job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **{name: result[name] for name in REPORTED if name in result},
            "base": job.base,
            "peft": self.model.peft.kind if self.model.peft else None,
            "objective": job.objective,
            "labels": list(job.labels),
            "parameters": result["parameters"],
            "max_length": self.max_length,
            "conditioned": job.conditioned,
        }
