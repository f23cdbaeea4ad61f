"""What every training stage is configured with. Light: building the heavy objects is `worker`'s work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tilth.config import Component, ModelRef
from tilth.errors import Problem
from tilth.kinds import KINDS
from tilth.nodes import Nodes
from tilth.train.freeze import Freeze
from tilth.train.peft import Peft


@dataclass(frozen=True)
class Fillers:
    """Rows that only fill up a batch, where a mean over the batch counts them."""

    #: of each, in the mean
    loss: float
    #: whether what else is told of a step counts each of them as 0
    figures: bool = True


class ModelConfig(Component):
    """A model and, optionally, an adapter on it. `{name: x, lora: {rank: 8}}` is short for `peft: {kind: lora, …}`."""

    name: ModelRef = Field(description='A hub name, a directory, or "@stage" for the model of an earlier stage.')
    peft: Peft | None = Field(None, description="The adapter to train; without one, all weights are trained.")
    freeze: Freeze | None = Field(None, description="Weights that are not trained; without it, all are.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Number format of the weights.")

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        """A plain string names the model; a key that names an adapter kind is that adapter."""
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict):
            return value
        kinds = [key for key in value if key in KINDS["peft"]]
        if not kinds:
            return value
        kind, given = kinds[0], value.get("peft")
        same = given is None or (isinstance(given, dict) and given.get("kind") == kind)
        if len(kinds) > 1 or not same:
            names = [*kinds, "peft"] if given is not None else kinds
            raise PydanticCustomError("peft", "takes one adapter, not {names}", {"names": " and ".join(names)})
        rest = {key: item for key, item in value.items() if key not in ("peft", kind)}
        return {**rest, "peft": {**(given or {}), **(value[kind] or {}), "kind": kind}}

    def check(self) -> list[Problem]:
        if self.peft and self.freeze:
            return [
                Problem("freeze", "an adapter freezes every weight of its model already", "leave freeze or peft out")
            ]
        return []

    def without_reference(self) -> Iterator[Problem]:
        """What keeps the model as it begins from being told by switching its adapter off."""
        if self.peft and self.peft.moves_base:
            what = "the reference is the model with its adapter off, which init: pissa has changed"
            yield Problem("model.peft.init", what, "use init: zero")
        if getattr(self.peft, "bias", "none") != "none":
            what = "the reference is the model with its adapter off, and biases are trained where they stand"
            yield Problem("model.peft.bias", what, "use bias: none")


class Averaging(Component):
    """An average of the weights over the steps, which is validated and left in the place of the last ones.

    With a decay it is exponential (Polyak & Juditsky 1992; Morales-Brotons et al. 2024, arXiv:2411.18704), without
    one the plain mean, as of Izmailov et al. 2018 (arXiv:1803.05407).
    """

    decay: float | None = Field(0.999, gt=0, lt=1, description="Share of the average kept at each step; null: mean.")
    begin: float = Field(0.0, ge=0, lt=1, description="Share of the steps after which it begins.")


class Optimisation(Component):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with a warm-up and a schedule."""

    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        5e-5, description="Peak learning rate; auto: found by a range test before training (arXiv:1506.01186)."
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the rows.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps, instead of epochs.")
    global_batch: int = Field(32, ge=1, description="Rows (or packs) of one optimizer step, over all workers.")
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0: not clipped.")
    scheduler: Literal["linear", "cosine", "constant"] = Field("linear", description="Learning rate after the warm-up.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast forward passes.")
    neftune: float | None = Field(None, gt=0, description="Noise on embeddings of this alpha (arXiv:2310.05914).")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the order of rows, of new weights and of dropout.")
    averaging: Averaging | None = Field(None, description="Leave an average of the weights; null: the last ones.")

    @property
    def peak(self) -> float:
        """The learning rate of a recipe that gives one; TypeError where it is to be found first."""
        if self.learning_rate == "auto":
            raise TypeError("the learning rate is not known before its range test")
        return self.learning_rate

    @property
    def warmup_scheduler(self) -> str:
        """The schedule's name in transformers, where a warm-up belongs to it."""
        return "constant_with_warmup" if self.scheduler == "constant" else self.scheduler


class Answers(Component):
    """Answers asked of the model at each validation: how many equal the row's own, and how like they are to it."""

    rows: int = Field(16, ge=1, description="Held-out rows that are asked, the first ones of the split.")
    max_new_tokens: int = Field(64, ge=1, description="Tokens of an answer.")
    batch: int = Field(8, ge=1, description="Prompts asked at once.")


class Validation(Component):
    """Rows that are never trained on, and what their loss decides. `validation: NAME` is short for that split."""

    split: str = Field("validation", description="The split whose loss is measured.")
    every_steps: int | None = Field(None, ge=1, description="Steps between two measurements; null: at the end alone.")
    patience: int | None = Field(None, ge=1, description="End after as many measurements without a better loss.")
    min_delta: float = Field(0.0, ge=0, description="A loss is better when it is lower by more than this.")
    keep: Literal["best", "last"] = Field("best", description="The weights that are left, if measured on the way.")
    answers: Answers | None = Field(None, description="Answers to ask for as well; null: the loss alone.")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"split": value} if isinstance(value, str) else value

    @property
    def keeps_best(self) -> bool:
        return self.every_steps is not None and self.keep == "best"

    def check(self) -> list[Problem]:
        if self.patience is not None and self.every_steps is None:
            return [Problem("patience", "needs measurements on the way", "set every_steps")]
        return []


class Checkpointing(Component):
    """When training can be resumed from. The result does not depend on it."""

    every_steps: int = Field(100, ge=1, description="Optimizer steps between two checkpoints.")
    keep: int = Field(2, ge=1, description="Checkpoints kept on storage.")


class Packing(Component):
    """Several rows in one sequence, by best-fit decreasing, none of which sees another (arXiv:2404.10830)."""

    length: int | None = Field(None, ge=2, description="Tokens of a pack; default: max_length.")


class DeepSpeed(Component):
    """ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): what is partitioned over the workers."""

    stage: Literal[0, 1, 2, 3] = Field(2, description="1: optimizer state; 2: and gradients; 3: and weights.")
    offload: bool = Field(False, description="Keep optimizer state (and with stage 3 weights) in CPU memory.")
    bucket_mib: int = Field(256, ge=1, description="Size of one reduction or gathering, in MiB of float16.")


@dataclass(frozen=True)
class Batches:
    """A global batch: workers x micro rows x accumulation."""

    workers: int
    micro: int
    accumulation: int


class Scale(Component):
    """Where training runs. The result does not depend on it, beyond the order of floating-point sums."""

    workers: int = Field(1, ge=0, description="Ray Train workers; 0: in this process, without Ray.")
    min_workers: int | None = Field(
        None, ge=1, description="Go on with as few workers while nodes are missing; null: wait for all."
    )
    cpus: float = Field(1.0, gt=0, description="CPU cores for each worker.")
    gpus: float = Field(0.0, ge=0, description="GPUs for each worker.")
    nodes: Nodes = Field(Nodes(), description="Which nodes workers may run on.")
    micro_batch: int | None = Field(None, ge=1, description="Rows a worker takes at once; default: at most 8.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, a third more time.")
    activation_offload: bool = Field(False, description="Keep a language model's activations in CPU memory.")
    deepspeed: DeepSpeed | Literal["auto"] | None = Field(
        None, description="Train with DeepSpeed; null: with PyTorch's DDP; auto: as much of it as memory asks for."
    )
    memory_gib: float | None = Field(None, gt=0, description="Memory of a worker for deepspeed: auto; null: as found.")
    max_failures: int = Field(2, ge=0, description="Times that dead workers are started anew from a checkpoint.")

    @property
    def each(self) -> dict[str, float]:
        """What one worker takes, as Ray names resources."""
        return self.nodes.each(self.cpus, self.gpus)

    def over(self, workers: int) -> Scale:
        """The same over another number of workers."""
        return self.model_copy(update={"workers": workers})

    def batches(self, global_batch: int) -> Batches | None:
        """How a global batch is divided; None where it is not divisible."""
        workers = max(1, self.workers)
        share, rest = divmod(global_batch, workers)
        micro = self.micro_batch or max((n for n in range(1, 9) if share and share % n == 0), default=1)
        if rest or not share or share % micro:
            return None
        return Batches(workers=workers, micro=micro, accumulation=share // micro)

    @property
    def zero(self) -> DeepSpeed | None:
        """DeepSpeed's settings, once they are decided."""
        return self.deepspeed if isinstance(self.deepspeed, DeepSpeed) else None

    def check(self) -> list[Problem]:
        found = []
        if self.zero and not self.workers:
            found.append(Problem("workers", "DeepSpeed needs a process group, but workers is 0", "use 1 or more"))
        if self.min_workers is not None:
            found += self._elastic_problems(self.min_workers)
        if self.activation_offload and not self.gpus:
            what = "on a CPU activations are in its memory already"
            found.append(Problem("activation_offload", what, "set it to false, or gpus to 1"))
        return found

    def _elastic_problems(self, fewest: int) -> Iterator[Problem]:
        if fewest > self.workers:
            yield Problem("min_workers", f"{fewest} is more than workers: {self.workers}", "use fewer, or leave it out")
        if self.deepspeed == "auto" or (self.zero and self.zero.stage):
            what = "what ZeRO partitions fits only as many workers as wrote it"
            yield Problem("min_workers", what, "set deepspeed: null, or leave min_workers out")

    def batch_problem(self, global_batch: int) -> Problem | None:
        """What is wrong with the division, with the nearest batches that divide."""
        most, micro = max(1, self.workers), self.micro_batch or 1
        counts = range(min(self.min_workers or most, most), most + 1)
        bad = next((workers for workers in counts if self.over(workers).batches(global_batch) is None), None)
        if bad is None:
            return None
        unit = math.lcm(*counts) * micro
        fits = [str(size) for size in (global_batch // unit * unit, (global_batch // unit + 1) * unit) if size]
        over = f"{bad} workers" + (f" x micro batch {micro}" if self.micro_batch else "")
        return Problem("", f"global batch {global_batch} is not divisible by {over}", f"use {' or '.join(fits)}")
