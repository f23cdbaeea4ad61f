"""A DeepSpeed configuration from ours: a pure function, so that it can be read and tested without DeepSpeed."""

from __future__ import annotations

from typing import Any

from tilth.train.config import Batches, DeepSpeed, Optimisation

MIB = 2**20


def deepspeed_config(settings: DeepSpeed, optimisation: Optimisation, batches: Batches) -> dict[str, Any]:
    """What `TrainingArguments(deepspeed=…)` takes. The optimizer and the schedule stay PyTorch's AdamW and ours."""
    return {
        "train_batch_size": optimisation.global_batch,
        "train_micro_batch_size_per_gpu": batches.micro,
        "gradient_accumulation_steps": batches.accumulation,
        "gradient_clipping": optimisation.max_grad_norm,
        "bf16": {"enabled": optimisation.precision == "bfloat16"},
        "fp16": {"enabled": False},
        "zero_optimization": _zero(settings),
        # offloading would otherwise demand DeepSpeed's own compiled Adam
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
    }


def without_compiled_collectives() -> None:
    """Keep DeepSpeed on a CPU from compiling its shared-memory all-reduce, which only inference uses.

    It would cost a minute and a C++ compiler; and a process killed meanwhile leaves a lock on which every later
    one waits for ever. Training reduces through gloo.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _zero(settings: DeepSpeed) -> dict[str, Any]:
    elements = settings.bucket_mib * MIB // 2
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.stage:
        zero |= {"reduce_bucket_size": elements, "overlap_comm": False, "contiguous_gradients": True}
    if settings.stage in (1, 2):
        zero |= {"allgather_bucket_size": elements}
    if settings.stage == 3:
        # the model is saved whole: gather its partitions when it is
        zero |= {"stage3_prefetch_bucket_size": elements, "stage3_gather_16bit_weights_on_model_save": True}
    if settings.offload and settings.stage:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if settings.stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero
