"""Learning from pairs of a better and a worse answer as a score of each, by TRL's RewardTrainer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence
from trl import RewardConfig, RewardTrainer

from tilth.data.schema import row_rng
from tilth.generate.engines.reward import encode, padding_side, reading
from tilth.train.objectives import Parts, arguments, prepared
from tilth.train.reward import RewardTraining
from tilth.train.watch import Watched

#: what a batch holds of each pair beside its tokens
TOLD = ("margin", "better", "weights")
#: 0 for a pair that only fills up the batch
REAL = "real"


def pair_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor, better: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Mean negative log-likelihood of the preferences (Bradley & Terry 1952).

    chosen, rejected: scores [pairs, heads]. margin [pairs]: by how much chosen is to lead (Touvron et al. 2023,
    arXiv:2307.09288). better [pairs]: the probability that chosen is the better answer, 0.5 for a tie. weights
    [pairs, heads]: how much a head learns from a pair.
    """
    lead = chosen - rejected - margin[:, None]
    each = binary_cross_entropy_with_logits(lead, better[:, None].expand_as(lead), reduction="none")
    return (each * weights).mean()


class WatchedRewardTrainer(Watched, RewardTrainer):  # type: ignore[misc]
    """TRL's RewardTrainer that tells which rows it saw, and whose loss knows ties, heads and rows that only fill up."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        told, real = {name: inputs.pop(name) for name in TOLD}, inputs.pop(REAL)
        _, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        chosen, rejected = outputs.logits.float().chunk(2)
        self._tell(chosen - rejected, real)
        loss = pair_loss(chosen, rejected, **told)
        if center := self.args.center_rewards_coefficient:
            loss = loss + center * ((chosen + rejected).square() * told["weights"]).mean()
        return (loss, outputs) if return_outputs else loss

    def _tell(self, lead: torch.Tensor, real: torch.Tensor) -> None:
        """Put TRL's accuracy and margin of the micro-batch right: pairs that only fill it up count as 0 in the mean."""
        told = self._metrics["train" if self.model.training else "eval"]
        for name, each in (("accuracy", (lead > 0).float()), ("margin", lead)):
            mean = (each.detach() * real[:, None]).mean()
            told[name][-1] = self.accelerator.gather_for_metrics(mean).mean().item()


@dataclass(frozen=True)
class PairCollator:
    """Batches of [2 x pairs, longest] ids, the chosen answers first, and what is told of each pair."""

    pad: int
    side: Literal["left", "right"]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row[name]) for name in ("chosen_ids", "rejected_ids") for row in rows]
        mask = [torch.ones_like(one) for one in ids]
        told = {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in TOLD}
        told[REAL] = torch.ones(len(rows))
        return {
            "input_ids": pad_sequence(ids, True, self.pad, self.side),
            "attention_mask": pad_sequence(mask, True, 0, self.side),
            **told,
        }


def reward(parts: Parts) -> Any:
    """The trainer; rows are encoded here and not by TRL, which drops those over max_length."""
    stage, model = parts.job.stage, parts.model
    if not isinstance(stage, RewardTraining):
        raise TypeError(f"a reward model is trained by the stage reward, not {stage.kind}")
    args = RewardConfig(**arguments(parts), max_length=None, center_rewards_coefficient=stage.center or None)
    train, validation = stage.splits
    learnt = prepared(parts, args, train, _encoder(parts, stage, learns=True), "pair")
    held_out = prepared(parts, args, validation, _encoder(parts, stage, learns=False), "pair")
    model.config.pad_token_id = parts.tokenizer.pad_token_id
    side = padding_side(model, parts.peft)
    with _one_output(model):
        return WatchedRewardTrainer(
            model=model, args=args, train_dataset=learnt, eval_dataset=held_out, processing_class=parts.tokenizer,
            peft_config=parts.peft, data_collator=PairCollator(parts.tokenizer.pad_token_id, side),
        )  # fmt: skip


def _encoder(parts: Parts, stage: RewardTraining, learns: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    tokenizer, heads = parts.tokenizer, stage.ensemble.heads

    def encoded(row: dict[str, Any]) -> dict[str, Any]:
        row = {**row, "meta": json.loads(row["meta"] or "{}")}
        texts = [reading(tokenizer, row["prompt"], row[name]) for name in ("chosen", "rejected")]
        (chosen, rejected), cut = encode(tokenizer, texts, stage.max_length)
        told = {"margin": stage.margin_of(row), "better": stage.better_of(row)}
        weights = _weights(stage.optimisation.seed, row["id"], heads) if learns and heads > 1 else [1.0] * heads
        return {"chosen_ids": chosen, "rejected_ids": rejected, "cut": any(cut), **told, "weights": weights}

    return encoded


def _weights(seed: int, row_id: str, heads: int) -> list[float]:
    """Double or nothing for each head: a bootstrap that needs no look at other rows (Owen & Eckles 2012)."""
    return [2.0 * (row_rng(seed, row_id, f"head {number}").random() < 0.5) for number in range(heads)]


@contextmanager
def _one_output(model: Any) -> Iterator[None]:
    """TRL refuses a model of several outputs when it is built, though its trainer takes them."""
    names = model.config.id2label
    model.config.id2label = {0: "reward"}
    try:
        yield
    finally:
        model.config.id2label = names
