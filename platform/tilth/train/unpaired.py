"""Learning from answers that are good or bad each by itself, by TRL's KTOTrainer."""

from __future__ import annotations

from typing import Any

import datasets
from trl import KTOConfig, KTOTrainer

from tilth.data.schema import row_rng
from tilth.train.kto import Kto
from tilth.train.objectives import Parts, arguments, prepared, splits
from tilth.train.preference import pair, reference_of
from tilth.train.watch import Watched

_LOSSES = {"kto": "kto", "apo_zero": "apo_zero_unpaired"}


class WatchedKTOTrainer(Watched, KTOTrainer):  # type: ignore[misc]
    """TRL's KTOTrainer that tells which rows it saw."""


def unpaired(parts: Parts) -> Any:
    """The trainer, its reference the model as it was: the adapter switched off, or a second copy of all weights."""
    stage = parts.job.stage
    if not isinstance(stage, Kto):
        raise TypeError(f"single answers are learnt by the stage kto, not {stage.kind}")
    args = KTOConfig(
        **arguments(parts), max_length=stage.max_length, beta=stage.beta, loss_type=_LOSSES[stage.loss],
        desirable_weight=stage.desirable_weight, undesirable_weight=stage.undesirable_weight,
    )  # fmt: skip
    pairs = (prepared(parts, args, split, pair, "pair") for split in splits(parts))
    train, validation = (rows and apart(rows, stage.optimisation.seed) for rows in pairs)
    return WatchedKTOTrainer(
        model=parts.model, ref_model=reference_of(parts), args=args, train_dataset=train, eval_dataset=validation,
        processing_class=parts.tokenizer, peft_config=parts.peft,
    )  # fmt: skip


def apart(rows: datasets.Dataset, seed: int) -> datasets.Dataset:
    """Both answers of every row, shuffled: TRL exchanges prompts between neighbours and keeps their order."""
    kinds = (("chosen", True), ("rejected", False))
    answers = [(number, name, good) for number in range(len(rows)) for name, good in kinds]
    ids = rows["id"]
    answers.sort(key=lambda answer: row_rng(seed, ids[answer[0]], f"kto/{answer[1]}").random())
    both = rows.select([number for number, _, _ in answers])
    texts = [row[name] for row, (_, name, _) in zip(both, answers, strict=True)]
    both = both.remove_columns(["chosen", "rejected"]).add_column("completion", texts)
    return both.add_column("label", [good for _, _, good in answers])
