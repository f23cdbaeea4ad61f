"""From rows to a trainer, for each objective: TRL's for causal language models, transformers' for all others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from tilth.data.conditioning import label_prefix
from tilth.data.dataset import Dataset
from tilth.data.schema import PACKED
from tilth.train.answering import Answering
from tilth.train.averaging import WeightAverage
from tilth.train.chat import as_trl
from tilth.train.checkpoint import Link
from tilth.train.collate import Collate
from tilth.train.config import Batches, Optimisation, Scale, Validation
from tilth.train.deepspeed import deepspeed_config
from tilth.train.job import Job
from tilth.train.layout import lay_out
from tilth.train.masking import IGNORED, MaskingCollator
from tilth.train.mlm import Mlm
from tilth.train.multitask import MultiTask, TaskRun
from tilth.train.retention import PullToInit
from tilth.train.tasks import Tasks
from tilth.train.thaw import Thaw
from tilth.train.trackers import RayMetrics, TensorBoard
from tilth.train.validating import Validating
from tilth.train.watch import Checkpoints, Epochs, Watch, Watched

EVAL_BATCH = 8  # fixed, so that a validation loss does not depend on the micro-batch


class WatchedTrainer(MultiTask, Watched, Trainer):  # type: ignore[misc]
    """transformers' Trainer that tells which rows it saw."""


class WatchedSFTTrainer(MultiTask, Watched, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer that tells which rows it saw."""


@dataclass(frozen=True)
class Parts:
    """What a trainer is built from."""

    job: Job
    link: Link
    model: Any
    tokenizer: Any
    peft: Any
    folder: Path
    batches: Batches
    #: where rows are prepared, and what the way in which they are is called there
    rows: Path
    key: str


def build(parts: Parts, watch: Watch) -> Any:
    """The trainer of the job's objective, ready to train: its rows divide into whole global batches."""
    trainer = _maker(parts.job.objective)(parts)
    trainer.watch = watch
    stage = parts.job.stage
    if isinstance(trainer.data_collator, MaskingCollator):
        trainer.add_callback(Epochs(trainer.data_collator))
    trainer.data_collator = Collate(trainer.data_collator, tasks=stage.tasks is not None)
    if stage.tasks:
        trainer.tasks = _tasks(stage.tasks, stage.optimisation, trainer.train_dataset)
        trainer.add_callback(trainer.tasks.memory)
    else:
        lay_out(trainer, parts)
    if strength := stage.forgets.l2_to_init:
        trainer.add_callback(PullToInit(trainer.model, strength))
    if averaging := stage.optimisation.averaging:
        trainer.average = WeightAverage(trainer.model, averaging, watch)
        trainer.add_callback(trainer.average)
    trainer.add_callback(Checkpoints(watch))
    settings = parts.job.stage.model.freeze
    if settings and settings.thaw_steps:
        trainer.add_callback(Thaw(trainer.model, settings))
    if "tensorboard" in parts.job.stage.trackers:
        trainer.add_callback(TensorBoard(parts.job.out, parts.folder))
    if parts.job.stage.scale.workers:
        trainer.add_callback(RayMetrics(parts.job.name))
    if validation := stage.validation:
        answering = Answering(parts, validation.answers) if validation.answers else None
        trainer.add_callback(Validating(validation, watch, trainer, answering))
    trainer.remove_callback(PrinterCallback)
    return trainer


def _tasks(tasks: Tasks, optimisation: Optimisation, rows: datasets.Dataset) -> TaskRun:
    passes = -(-len(rows) // optimisation.global_batch)
    steps = optimisation.steps or math.ceil(passes * optimisation.epochs)
    return TaskRun.of(tasks, rows, optimisation.global_batch, steps, optimisation.seed)


def _maker(objective: str) -> Callable[[Parts], Any]:
    from tilth.train import heads, pairwise, preference, seq2seq, unpaired  # they build on this module

    return {
        "language_model": _language_model,
        "classification": _classifier,
        "token_classification": heads.token_classifier,
        "question_answering": heads.question_answerer,
        "seq2seq": seq2seq.seq2seq,
        "preference": preference.preference,
        "unpaired": unpaired.unpaired,
        "reward": pairwise.reward,
        "masked_lm": _masked,
    }[objective]


def _language_model(parts: Parts) -> Any:
    stage = parts.job.stage
    args = SFTConfig(
        **arguments(parts), max_length=stage.max_length, dataset_text_field="text",
        completion_only_loss=stage.learns != "all", activation_offloading=stage.scale.activation_offload,
    )  # fmt: skip
    packed = parts.job.row_type == PACKED
    args.dataset_kwargs = {"skip_prepare_dataset": packed}
    form = None if packed else as_trl(parts.job.row_type, stage.learns, parts.tokenizer)
    train, validation = (prepared(parts, args, split, form, "text") for split in splits(parts))
    return WatchedSFTTrainer(
        model=parts.model, args=args, train_dataset=train, eval_dataset=validation,
        processing_class=parts.tokenizer, peft_config=parts.peft,
    )  # fmt: skip


def _classifier(parts: Parts) -> Any:
    index = {label: number for number, label in enumerate(parts.job.labels)}
    length, tokenizer = parts.job.stage.max_length, parts.tokenizer

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer(row["text"], truncation=True, max_length=length)["input_ids"]
        return {"input_ids": ids, "labels": index[row["label"]]}

    parts.model.config.pad_token_id = tokenizer.pad_token_id
    return supervised(parts, encode, DataCollatorWithPadding(tokenizer), compute_loss_func=cross_entropy)


def _masked(parts: Parts) -> Any:
    stage, tokenizer = parts.job.stage, parts.tokenizer
    if not isinstance(stage, Mlm):
        raise TypeError(f"masked language modelling is trained by the stage mlm, not {stage.kind}")

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        prefix = label_prefix(row.get("label")) if parts.job.conditioned else ""
        found = tokenizer(
            prefix + row["text"], truncation=True, max_length=stage.max_length, return_offsets_mapping=True
        )
        spans = zip(found.word_ids(), found["offset_mapping"], strict=True)
        words = [-1 if word is None or start < len(prefix) else word for word, (start, _) in spans]
        return {"input_ids": found["input_ids"], "words": words}

    collator = MaskingCollator(tokenizer, stage.mask_rate, stage.optimisation.seed)
    return supervised(parts, encode, collator, compute_loss_func=cross_entropy)


def supervised(parts: Parts, encode: Callable[[dict[str, Any]], dict[str, Any]], collator: Any, **options: Any) -> Any:
    """transformers' Trainer on rows that `encode` made inputs of."""
    from peft import get_peft_model

    args = TrainingArguments(**arguments(parts))
    train, validation = (prepared(parts, args, split, encode, parts.job.objective) for split in splits(parts))
    model = parts.model if parts.peft is None else get_peft_model(parts.model, parts.peft)
    return WatchedTrainer(
        model=model, args=args, train_dataset=train, eval_dataset=validation, data_collator=collator,
        processing_class=parts.tokenizer, **options,
    )  # fmt: skip


def cross_entropy(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean over the labels of the whole global batch (IGNORED does not count); over `labels` where it is not given.

    The heads of several architectures ignore `num_items_in_batch`, which makes their loss depend on accumulation.
    """
    logits = outputs["logits"].float().flatten(end_dim=-2)
    total = torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")
    count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def splits(parts: Parts) -> tuple[str, str | None]:
    return parts.job.stage.splits


def prepared(
    parts: Parts, args: Any, split: str | None, encode: Callable[..., dict[str, Any]] | None, what: str
) -> Any:
    """Rows of a split, memory-mapped: a node's first rank encodes what is no tokens yet, the others open its file."""
    if split is None:
        return None
    dataset = Dataset.open(parts.job.data).split(split)
    with args.main_process_first(local=True, desc=f"preparing {split}"):
        rows = dataset.write_to(parts.rows)
        if encode is None:
            return rows.select_columns(["id", "input_ids", "labels", "pack"])
        drop = [name for name in rows.column_names if name not in ("id", "task")]
        key = f"{parts.key}-{split}-{what}"
        return rows.map(encode, remove_columns=drop, new_fingerprint=key, desc=f"Preparing {split}")


def arguments(parts: Parts) -> dict[str, Any]:
    """`TrainingArguments` of the stage's configuration."""
    stage, batches = parts.job.stage, parts.batches
    optimisation, scale = stage.optimisation, stage.scale
    return {
        **_schedule(optimisation),
        **_execution(scale, optimisation, batches),
        "ddp_find_unused_parameters": bool(stage.model.freeze and stage.model.freeze.thaw_steps),
        **_evaluation(stage.validation),
        "output_dir": str(parts.folder / f"rank-{parts.link.rank}"),
        "save_strategy": "steps",
        "save_steps": stage.checkpointing.every_steps,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [name for name in stage.trackers if name != "tensorboard"] or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,
    }


def _evaluation(validation: Validation | None) -> dict[str, Any]:
    if validation is None or validation.every_steps is None:
        return {"eval_strategy": "no"}
    return {"eval_strategy": "steps", "eval_steps": validation.every_steps}


def _schedule(optimisation: Optimisation) -> dict[str, Any]:
    return {
        "learning_rate": 1.0 if optimisation.learning_rate == "auto" else optimisation.learning_rate,  # see range_test
        "num_train_epochs": optimisation.epochs,
        "max_steps": optimisation.steps or -1,
        "warmup_steps": optimisation.warmup,
        "lr_scheduler_type": optimisation.warmup_scheduler,
        "optim": "adamw_torch",
        "weight_decay": optimisation.weight_decay,
        "max_grad_norm": optimisation.max_grad_norm,
        "neftune_noise_alpha": optimisation.neftune,
        "bf16": optimisation.precision == "bfloat16",
        "seed": optimisation.seed,
        "data_seed": optimisation.seed,
    }


def _execution(scale: Scale, optimisation: Optimisation, batches: Batches) -> dict[str, Any]:
    cpu = not scale.gpus
    backend = ("gloo" if cpu else "nccl") if torch.distributed.is_initialized() else None
    return {
        "per_device_train_batch_size": batches.micro,
        "per_device_eval_batch_size": EVAL_BATCH,
        "gradient_accumulation_steps": batches.accumulation,
        "gradient_checkpointing": scale.gradient_checkpointing,
        "use_cpu": cpu,
        "ddp_backend": backend,
        "deepspeed": deepspeed_config(scale.zero, optimisation, batches) if scale.zero else None,
    }
