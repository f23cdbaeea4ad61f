"""The optimizer by DeepSpeed: AdamW's state, and from stage 2 gradients, divided among the learners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
from torch import Tensor

from tilth.train.config import Batches, DeepSpeed, Optimisation
from tilth.train.deepspeed import deepspeed_config
from tilth.train.ppo.optimiser import adamw
from tilth.train.ppo.policy import Policy
from tilth.train.ppo.ranks import Ranks

#: the folder of DeepSpeed's files in a checkpoint
ZERO = "zero"


class ZeroOptimiser:
    """As `tilth.train.ppo.optimiser.Optimiser`, by ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054), stages 0 to 2."""

    def __init__(self, policy: Policy, optimisation: Optimisation, ranks: Ranks, settings: DeepSpeed) -> None:
        self.policy, self.optimisation, self.ranks = policy, optimisation, ranks
        alone = optimisation.model_copy(update={"global_batch": ranks.world, "precision": "float32"})
        config = deepspeed_config(settings, alone, Batches(ranks.world, 1, 1))
        # a minibatch has as many micro-batches as its samples fill: its end is where `step` is called
        config["managed_gradient_accumulation"] = False
        self.module: Any
        self.module, *_ = deepspeed.initialize(model=policy, optimizer=adamw(policy, optimisation), config=config)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient; DeepSpeed takes the mean over the ranks, and what is wanted is the sum."""
        self.module.backward(loss * self.ranks.world)

    def step(self, learning_rate: float) -> float:
        """Change the weights by the gradients so far; their norm before it was clipped."""
        for group in self.module.optimizer.param_groups:
            group["lr"] = learning_rate
        self.module.step()
        self.policy.version += 1
        return float(self.module.get_global_grad_norm())

    def drop(self) -> None:
        raise TypeError("DeepSpeed cannot forget gradients; the stage does not let it come to that")

    def save(self, folder: Path, *, writes: bool) -> None:
        """Write this rank's part of the state; every rank calls it, and has a part of its own."""
        self.module.save_checkpoint(str(folder / ZERO), tag="state", save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        self.module.load_checkpoint(str(folder / ZERO), tag="state", load_module_strict=False)
