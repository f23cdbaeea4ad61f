"""Making training fit: what DeepSpeed partitions, and how many rows a worker takes at once. Light."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tilth import ui
from tilth.errors import StageError
from tilth.train.config import Batches, DeepSpeed, ModelConfig, Optimisation, Scale
from tilth.train.memory import training_bytes
from tilth.weights import Weights, in_folder

if TYPE_CHECKING:
    from pathlib import Path

    from tilth.train.base import Training
    from tilth.train.job import Job

#: share of a device's memory for weights, gradients and optimizer state; activations and buffers have the rest
ROOM = 0.6
MICRO = "micro_batch.json"


class MicroBatchError(StageError):
    """A micro-batch did not fit the device's memory. A smaller one is noted, with which training can go on."""


def zero_preset(
    weights: Weights, model: ModelConfig, optimisation: Optimisation, scale: Scale, memory: float
) -> DeepSpeed | None:
    """The least partitioning with which a worker's share fits into ROOM of its `memory` bytes.

    Of P weights, T of them trained, of w bytes, n workers hold each (ZeRO, arXiv:1910.02054; `training_bytes`):

    | what             | bytes                    |
    |------------------|--------------------------|
    | null (DDP)       | w P + w T + 8 to 12 T    |
    | stage 1          | w P + w T + 12 T / n     |
    | stage 2          | w P + (w + 12) T / n     |
    | stage 3          | (w P + (w + 12) T) / n   |
    | stage 3, offload | a layer at a time        |

    What is partitioned more is communicated more, so the first that fits is taken; if none fits, the last.
    """
    workers = max(1, scale.workers)
    for stage in (None, 1, 2, 3) if workers > 1 else (None,):
        tried = None if stage is None else DeepSpeed.model_validate({"stage": stage})
        held = training_bytes(weights, model, optimisation, scale.model_copy(update={"deepspeed": tried}))
        if held / workers <= ROOM * memory:
            return tried
    return DeepSpeed(stage=3, offload=True)


def fitted(stage: Training, name: str, folder: Path) -> Training:
    """The stage with `deepspeed: auto` decided for the model in `folder`; said aloud."""
    scale = stage.scale
    if scale.deepspeed != "auto":
        return stage
    size = in_folder(folder)
    if size is None:
        raise StageError(f"{name}: deepspeed: auto cannot tell the size of {stage.model.name}; set deepspeed.stage")
    memory = _memory(scale, name)
    chosen = zero_preset(size, stage.model, stage.optimisation, scale, memory) if scale.workers else None
    what = "no DeepSpeed" if chosen is None else f"ZeRO stage {chosen.stage}{' with offload' * chosen.offload}"
    ui.reporter().say(
        f"{name}: {what} for {size.parameters:,} parameters on {max(1, scale.workers)} workers of "
        f"{memory / 2**30:.1f} GiB"
    )
    decided = scale.model_copy(update={"deepspeed": chosen})
    for problem in stage.model.peft.unfit(decided) if stage.model.peft else ():
        raise StageError(f"{name}: deepspeed: auto: {problem.what}; {problem.mend}")
    return stage.model_copy(update={"scale": decided})


def _memory(scale: Scale, name: str) -> float:
    """Bytes that each worker has: as the recipe says, of this machine's first GPU, or its share of this machine."""
    if scale.memory_gib is not None:
        return scale.memory_gib * 2**30
    if not scale.gpus:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / max(1, scale.workers)
    import torch

    if not torch.cuda.is_available():
        raise StageError(f"{name}: deepspeed: auto finds no GPU here to ask for its memory; set scale.memory_gib")
    return float(torch.cuda.get_device_properties(0).total_memory)


def batches(job: Job, workers: int) -> Batches:
    """How the global batch is divided: as the recipe says, or with fewer rows at once where those did not fit."""
    scale, size = job.stage.scale.over(workers), job.stage.optimisation.global_batch
    if (note := noted(job)) is not None:
        share, most = size // max(1, workers), min(note["rows"], scale.micro_batch or note["rows"])
        scale = scale.model_copy(update={"micro_batch": _dividing(share, most)})
    found = scale.batches(size)
    if found is None:
        raise StageError(f"{job.name}: {scale.batch_problem(size)}")
    return found


def _dividing(share: int, most: int) -> int:
    """The largest number of rows up to `most` that divides a worker's share of the batch; 0 where `most` is 0."""
    return max((rows for rows in range(1, most + 1) if share % rows == 0), default=0)


def noted(job: Job) -> dict[str, Any] | None:
    """{rows, first}: rows a worker takes at once since `first` did not fit; None where all went well."""
    note: dict[str, Any] | None = job.out.read_json(MICRO)
    return note if note is not None and note["fingerprint"] == job.fingerprint else None


def shrunk(job: Job, tried: Batches) -> StageError:
    """Note a smaller micro-batch, about half, that leaves the global batch as it is; StageError at one row."""
    share = tried.micro * tried.accumulation
    rows = _dividing(share, tried.micro // 2)
    if not rows or job.stage.micro_batch_counts:
        many = "one row" if tried.micro == 1 else f"the {tried.micro} rows that belong together"
        return StageError(
            f"{job.name}: the device's memory is too small for {many} at once; set scale.gradient_checkpointing, "
            "scale.deepspeed with offload, model.dtype: bfloat16, or a smaller max_length"
        )
    first = (noted(job) or {"first": tried.micro})["first"]
    job.out.write_json(MICRO, {"fingerprint": job.fingerprint, "rows": rows, "first": first})
    return MicroBatchError(
        f"{job.name}: {tried.micro} rows at once do not fit the device's memory; going on with {rows}"
    )


def say_smaller(job: Job, note: Mapping[str, Any]) -> None:
    """Where the driver reports: how many rows a worker takes at once, now that more did not fit."""
    scale = job.stage.scale.model_copy(update={"micro_batch": note["rows"]})
    divided = scale.batches(job.stage.optimisation.global_batch)
    times = f", {divided.accumulation} times a step" if divided else ""
    ui.reporter().say(
        f"{job.name}: {note['first']} rows at once do not fit the device's memory; each worker now takes "
        f"{note['rows']}{times}; the global batch stays {job.stage.optimisation.global_batch}"
    )
