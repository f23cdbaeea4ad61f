"""Learning from pairs of a better and a worse answer, by TRL's DPOTrainer."""

from __future__ import annotations

from typing import Any

from trl import DPOConfig, DPOTrainer

from tilth.data.loading import load_pretrained
from tilth.train.dpo import Dpo
from tilth.train.objectives import Parts, arguments, prepared, splits
from tilth.train.watch import Watched


class WatchedDPOTrainer(Watched, DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer that tells which rows it saw."""


def preference(parts: Parts) -> Any:
    """The trainer, its reference the model as it was: the adapter switched off, or a second copy of all weights."""
    stage = parts.job.stage
    if not isinstance(stage, Dpo):
        raise TypeError(f"preferences are learnt by the stage dpo, not {stage.kind}")
    args = DPOConfig(**arguments(parts), max_length=stage.max_length, beta=stage.beta, loss_type=[stage.loss])
    train, validation = (prepared(parts, args, split, pair, "pair") for split in splits(parts))
    return WatchedDPOTrainer(
        model=parts.model, ref_model=reference_of(parts), args=args, train_dataset=train, eval_dataset=validation,
        processing_class=parts.tokenizer, peft_config=parts.peft,
    )  # fmt: skip


def reference_of(parts: Parts) -> Any:
    """A second copy of the model where all weights are trained; None where the adapter can be switched off."""
    if parts.peft is not None:
        return None
    stage = parts.job.stage
    return load_pretrained(parts.job.inputs.model(stage.model.name), parts.job.leaves, dtype=stage.model.dtype).model


def pair(row: dict[str, Any]) -> dict[str, Any]:
    """What is learnt from of a preference row."""
    return {name: row[name] for name in ("prompt", "chosen", "rejected")}
