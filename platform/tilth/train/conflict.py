"""Gradient conflict: tasks whose gradients pull the same weights in opposite directions, and remedies as kinds.

Naming any kind makes training take the gradient of every task by a backward pass of its own, and note in the trace
how they lie to each other. Light: the arithmetic is in `gradients`.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tilth.config import Component

if TYPE_CHECKING:
    from torch import Tensor

#: what a remedy remembers from step to step, as plain data that a checkpoint can hold
Memory = list[list[float]]


class Conflict(Component, family="conflict"):
    """How the gradients of a step's tasks become one."""

    def start(self, tasks: int) -> Memory:
        """What is remembered before the first step."""
        return []

    def combine(self, gradients: Tensor, rng: Random, memory: Memory) -> tuple[Tensor, Memory]:
        """From (tasks, parameters) to (parameters,), and what the next step is to remember; see `gradients`."""
        raise TypeError(f"{type(self).__name__} must define combine()")


class Unresolved(Conflict):
    """The sum of the gradients, as in plain training: conflicts are measured and left alone."""

    def combine(self, gradients: Tensor, rng: Random, memory: Memory) -> tuple[Tensor, Memory]:
        return gradients.sum(dim=0), memory
