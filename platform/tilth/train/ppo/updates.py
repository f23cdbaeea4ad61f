"""Clipped updates from the experience of a step: passes, minibatches, micro-batches, and when to stop."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tilth.train.ppo import maths
from tilth.train.ppo.batch import Batch
from tilth.train.ppo.experience import Experience
from tilth.train.ppo.microbatches import MicroBatches
from tilth.train.ppo.optimiser import Stepping, rate
from tilth.train.ppo.settings import Algorithm

#: sums over tokens that an update is described by
SUMS = ("policy_loss", "value_loss", "approx_kl", "clip_fraction", "loss", "log_ratio")


@dataclass
class Updates:
    """What the updates of a step came to."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    tokens: int = 0
    steps: int = 0
    ratio: float = 1.0
    norms: list[float] = field(default_factory=list)
    stopped: bool = False
    #: mean |log ratio| of the first minibatch, whose weights are unchanged: 0 but for rounding
    unchanged: float = 0.0

    def means(self) -> dict[str, float]:
        return {name: value / max(1, self.tokens) for name, value in self.sums.items()}


@dataclass
class Updater:
    """Changes a policy by what a step has shown."""

    batches: MicroBatches
    optimiser: Stepping
    algorithm: Algorithm

    def learn(self, experience: Experience, number: int, steps: int, coefficient: float) -> Updates:
        """Passes over the samples of step `number` of `steps`, until they are done or the policy has gone far enough.

        `coefficient` is what a nat of KL costs.
        """
        updates = Updates()
        pace = rate(self.optimiser.optimisation, number, steps)
        count = len(experience.samples)
        for epoch in range(self.algorithm.epochs):
            order = list(range(count))
            random.Random(f"{self.optimiser.optimisation.seed}/{number}/{epoch}").shuffle(order)
            size = -(-count // self.algorithm.minibatches)
            for start in range(0, count, size):
                self._update(experience, order[start : start + size], updates, coefficient, pace)
                if updates.stopped:
                    return updates
        return updates

    def _update(
        self, experience: Experience, rows: list[int], updates: Updates, coefficient: float, pace: float
    ) -> None:
        """One optimizer step from a minibatch; none where it would go too far or is not finite."""
        tokens = int(experience.mask[rows].sum())
        sums, ratio = torch.zeros(len(SUMS)), torch.zeros(1)
        for micro, batch in self.batches.deal(experience.samples, rows):
            part = experience.at(micro, batch.room).to(batch.tokens.device)
            loss, told, largest = self._loss(batch, part, tokens, coefficient)
            self.optimiser.backward(loss)
            sums, ratio = sums + told.cpu(), torch.maximum(ratio, largest.cpu())
        ranks = self.batches.ranks
        sums = ranks.sum(sums, self.batches.policy.device)
        updates.ratio = max([updates.ratio, *ranks.together(ratio.tolist())])
        if updates.steps == 0:
            updates.unchanged = float(sums[SUMS.index("log_ratio")]) / tokens
        limit = self.algorithm.stop_at_kl
        if limit is not None and float(sums[SUMS.index("approx_kl")]) / tokens > limit:
            self.optimiser.drop()
            updates.stopped = True
            return
        norm = self.optimiser.step(pace)
        updates.norms.append(norm)
        updates.steps += 1
        updates.tokens += tokens
        for name, value in zip(SUMS, sums.tolist(), strict=True):
            updates.sums[name] += value
        updates.stopped = not math.isfinite(norm)

    def _loss(self, batch: Batch, part: Experience, tokens: int, coefficient: float) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a micro-batch as its share of the minibatch's mean over tokens; sums to report; largest ratio."""
        algorithm, mask = self.algorithm, batch.mask
        if part.advantages is None:
            raise TypeError("experience has no advantages yet")
        said = self.optimiser.module(batch, entropy=algorithm.entropy > 0)
        losses = maths.policy_loss(
            said.logprobs, part.old, part.advantages, algorithm.clip, algorithm.high, part.weights
        )
        policy, value = losses, torch.zeros_like(losses)
        if algorithm.kl.place == "loss":
            estimate = maths.kl(said.logprobs, part.reference, algorithm.kl.estimator)
            losses = losses + coefficient * estimate
        if said.entropy is not None:
            losses = losses - algorithm.entropy * said.entropy
        critic = algorithm.advantage.critic
        if critic and said.values is not None and part.values is not None and part.returns is not None:
            value = maths.value_loss(said.values, part.values, part.returns, critic.clip)
            losses = losses + critic.coefficient * value
        difference = (said.logprobs - part.old).detach()
        ratio = difference.exp()
        clipped = (ratio < 1 - algorithm.clip) | (ratio > 1 + algorithm.high)
        away = maths.kl(part.old, said.logprobs.detach(), "k3")
        told = torch.stack(
            [
                maths.masked_sum(item.detach().float(), mask)
                for item in (policy, value, away, clipped, losses, difference.abs())
            ]
        )
        largest = (ratio * mask).max().reshape(1)
        return maths.masked_sum(losses, mask) / tokens, told, largest
