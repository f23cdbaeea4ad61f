"""One optimizer step after another over all learners, with PyTorch alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tilth.train.config import Optimisation
from tilth.train.ppo.policy import Policy
from tilth.train.ppo.ranks import Ranks

#: as in the original PPO and in Huang et al. 2024; AdamW's own 1e-8 makes the first steps large
EPSILON = 1e-5
OPTIMIZER = "optimizer.pt"


def rate(optimisation: Optimisation, step: int, steps: int) -> float:
    """Learning rate of step number `step` (from 0) of `steps`: a warm-up, then the schedule."""
    warmup = math.ceil(optimisation.warmup * steps)
    if step < warmup:
        return optimisation.peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    left = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
    return optimisation.peak * left[optimisation.scheduler]


def adamw(policy: Policy, optimisation: Optimisation) -> Any:
    """AdamW over what a policy learns; as in most trainings, biases and norms do not decay."""
    weights = list(policy.learnt().values())
    decays = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": optimisation.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in decays if group["params"]], lr=0.0, eps=EPSILON, fused=True)


class Stepping(Protocol):
    """What changes the weights. `module` is the policy as it is to be called where a gradient is wanted."""

    module: Any
    optimisation: Optimisation

    def backward(self, loss: Tensor) -> None: ...

    def step(self, learning_rate: float) -> float: ...

    def drop(self) -> None: ...

    def save(self, folder: Path, *, writes: bool) -> None: ...

    def load(self, folder: Path) -> None: ...


class Optimiser:
    """AdamW by PyTorch alone. Every rank holds all of its state; gradients are summed over the ranks."""

    def __init__(self, policy: Policy, optimisation: Optimisation, ranks: Ranks) -> None:
        self.module, self.ranks, self.optimisation = policy, ranks, optimisation
        self.weights = list(policy.learnt().values())
        self.inner = adamw(policy, optimisation)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Change the weights by the gradients so far; their norm before it was clipped. One not finite changes none."""
        self.ranks.sum_gradients(self.weights)
        limit = self.optimisation.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, limit))
        if math.isfinite(norm):
            for group in self.inner.param_groups:
                group["lr"] = learning_rate
            self.inner.step()
            self.module.version += 1
        self.drop()
        return norm

    def drop(self) -> None:
        """Forget the gradients so far."""
        self.inner.zero_grad(set_to_none=True)

    def save(self, folder: Path, *, writes: bool) -> None:
        """Write the state, which is the same on every rank, where this one writes for all."""
        if writes:
            torch.save(self.inner.state_dict(), folder / OPTIMIZER)

    def load(self, folder: Path) -> None:
        """Put back what `save` wrote."""
        self.inner.load_state_dict(torch.load(folder / OPTIMIZER, map_location=self.module.device, weights_only=True))
