"""How much each task counts: weights of the tasks' losses as kinds. Light and pure, in plain Python.

A row's loss is multiplied by its task's weight, so that the loss of a step is Σ weight x share x mean loss over the
tasks, where the share is the task's part of the step's loss items (tokens, or rows of a classifier). Weights of 1 are
plain training; how often a task is seen is the affair of `sampling`.

A dynamic weighting has a state, which a checkpoint holds and which is the same on every worker: it follows from what
all workers saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tilth.config import Component

#: numbers by task, under the names that the kind gives them
State = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Seen:
    """What a step showed of one task: its mean loss, and where they are taken the norm of its gradient.

    The norm is that of weight x mean loss over the trainable parameters.
    """

    loss: float
    norm: float | None = None


class Weighting(Component, family="weighting"):
    """The weights of the tasks, and how they follow from what training shows."""

    #: whether it asks for the norm of each task's gradient, which takes backward passes of their own
    needs_norms: ClassVar[bool] = False

    def start(self, tasks: tuple[str, ...]) -> State:
        """The state before the first step; `weights` holds a weight for each task."""
        return {"weights": dict.fromkeys(tasks, 1.0)}

    def update(self, state: State, seen: Mapping[str, Seen]) -> State:
        """The state after a step that saw these tasks; others keep what they have."""
        return state

    def missing(self, tasks: set[str]) -> set[str]:
        """Names that the recipe gives and the data lacks, or the data holds and the recipe must give."""
        return set()


class Unweighted(Weighting):
    """Every row counts the same, as in plain training."""
