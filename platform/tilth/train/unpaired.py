"""Learning from answers that are good or bad each by itself, by TRL's KTOTrainer."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from trl import KTOConfig, KTOTrainer

from tilth.data.schema import row_rng
from tilth.train.kto import Kto
from tilth.train.objectives import Parts, arguments, prepared, splits
from tilth.train.preference import pair, reference_of
from tilth.train.watch import Watched

_LOSSES = {"kto": "kto", "apo_zero": "apo_zero_unpaired"}


class WatchedKTOTrainer(Watched, KTOTrainer):  # type: ignore[misc]
    """TRL's KTOTrainer that tells which rows it saw, and whose reference point and figures know rows that only fill up.

    Such a row has no completion: to the model it is as likely as to the reference, and would draw both to nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: rewards and number of the better and of the worse answers of the step at hand, on all workers
        self.rewards = torch.zeros(2, 2)

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Any:
        """Of each row, so much larger as the mean over all rows of all workers is smaller than that over the real."""
        if (found := super()._compute_kl_logps(model, batch)) is None:
            return None
        real = self.accelerator.reduce(batch["KL_completion_mask"].any(1).float().mean(), "mean")
        return found / real.clamp(min=torch.finfo(real.dtype).eps)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        loss = super()._compute_loss(model, inputs, return_outputs)
        if not self.model.training:
            return loss  # held-out rows are never filled up
        told = self._metrics["train"]
        real, better = inputs["completion_mask"].any(1), torch.as_tensor(inputs["label"]).bool()
        kinds = ("chosen", better, self.args.desirable_weight), ("rejected", ~better, self.args.undesirable_weight)
        point = torch.tensor(self.beta * told["kl"][-1]).sigmoid().item()
        for row, ((name, of_kind, weight), each) in enumerate(zip(kinds, (point, 1 - point), strict=True)):
            of_kind = of_kind.to(real.device)
            counts = torch.stack([of_kind.sum(), (of_kind & real).sum()])
            every, seen = self.accelerator.reduce(counts, "sum").tolist()
            if every:
                self.rewards[row] += torch.tensor([told[f"rewards/{name}"][-1] * every, seen])
            # TRL counts each of them with the loss of an answer that is as likely as to the reference
            loss = loss - weight * each * (of_kind & ~real).sum() / len(real)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            better, worse = (self.rewards[:, 0] / self.rewards[:, 1]).tolist()
            if self.rewards[:, 1].all():
                self._metrics["train"]["rewards/margins"] = [better - worse]
            else:
                self._metrics["train"].pop("rewards/margins", None)
            self.rewards.zero_()
        super().log(logs, start_time)


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
