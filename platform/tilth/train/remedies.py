"""The remedies for gradient conflict, as kinds. Light: their arithmetic is in `gradients`."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from pydantic import Field

from tilth.train.conflict import Conflict, Memory

if TYPE_CHECKING:
    from torch import Tensor


class PcGrad(Conflict):
    """Project conflicting gradients onto each other's normal plane (Yu et al. 2020, arXiv:2001.06782)."""

    def combine(self, gradients: Tensor, rng: Random, memory: Memory) -> tuple[Tensor, Memory]:
        from tilth.train.gradients import pcgrad

        return pcgrad(gradients, orders(len(gradients), rng)), memory


class Masking(Conflict):
    """Leave parameters alone where the tasks' signs disagree (AND-mask: Parascandolo et al. 2021, arXiv:2009.00329)."""

    agreement: float = Field(1.0, gt=0, le=1, description="Least |mean sign| of a kept parameter; 1: all agree.")

    def combine(self, gradients: Tensor, rng: Random, memory: Memory) -> tuple[Tensor, Memory]:
        from tilth.train.gradients import masked

        return masked(gradients, self.agreement), memory


class GradVac(Conflict):
    """Turn gradients to at least their usual cosine (gradient vaccine: Wang et al. 2021, arXiv:2010.05874)."""

    beta: float = Field(0.01, gt=0, le=1, description="Weight of the newest step in the usual cosines.")

    def start(self, tasks: int) -> Memory:
        return [[0.0] * tasks for _ in range(tasks)]

    def combine(self, gradients: Tensor, rng: Random, memory: Memory) -> tuple[Tensor, Memory]:
        from tilth.train.gradients import gradvac

        targets = gradients.new_tensor(memory)
        combined, targets = gradvac(gradients, orders(len(gradients), rng), targets, self.beta)
        usual: Memory = targets.tolist()
        return combined, usual


class CaGrad(Conflict):
    """Improve the worst task near the mean gradient (conflict-averse: Liu et al. 2021, arXiv:2110.14048)."""

    c: float = Field(0.5, ge=0, lt=1, description="How far from the mean gradient, as a share of its norm.")

    def combine(self, gradients: Tensor, rng: Random, memory: Memory) -> tuple[Tensor, Memory]:
        from tilth.train.gradients import cagrad

        return cagrad(gradients, self.c), memory


def orders(tasks: int, rng: Random) -> Sequence[Sequence[int]]:
    """For each task the others, in a random order."""
    return [rng.sample([j for j in range(tasks) if j != i], tasks - 1) for i in range(tasks)]
