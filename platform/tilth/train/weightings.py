"""The kinds of weighting: what becomes of the tasks' weights after each step. Pure functions of what the steps saw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tilth.errors import Problem
from tilth.train.weighting import Seen, State, Weighting


class Fixed(Weighting):
    """Weights as given."""

    weights: dict[str, float] = Field(min_length=1, description="Task: its weight; 1 where it has none.")

    def check(self) -> list[Problem]:
        return [
            Problem(
                f"weights.{task}", f"must be above 0, not {weight:g}", "leave a task without weight out of the data"
            )
            for task, weight in self.weights.items()
            if weight <= 0
        ]

    def start(self, tasks: tuple[str, ...]) -> State:
        return {"weights": {task: self.weights.get(task, 1.0) for task in tasks}}

    def missing(self, tasks: set[str]) -> set[str]:
        return set(self.weights) - tasks


class Uncertainty(Weighting):
    """Learnt noise of each task (Kendall et al. 2018, arXiv:1705.07115): a noisier task weighs less.

    With s = log σ² of a task, exp(-s) loss + s / 2 is minimised in s by gradient descent; the weight is exp(-s),
    which tends to 1 / (2 loss).
    """

    learning_rate: float = Field(0.02, gt=0, description="Step of the descent in s.")

    def update(self, state: State, seen: Mapping[str, Seen]) -> State:
        weights = dict(state["weights"])
        for task, item in seen.items():
            slope = 0.5 - weights[task] * item.loss
            weights[task] *= math.exp(self.learning_rate * slope)
        return {"weights": weights}


class GradNorm(Weighting):
    """Gradients of like size, larger where a task lags (Chen et al. 2018, arXiv:1711.02257).

    The norms of the weighted gradients are drawn to their mean x (relative inverse training rate)^alpha. The descent
    is on norms relative to their mean, so that its step does not depend on the model's scale.
    """

    needs_norms: ClassVar[bool] = True

    alpha: float = Field(1.5, ge=0, description="How strongly a task that lags is pulled along; 0: equal norms.")
    learning_rate: float = Field(0.02, gt=0, description="Step of the descent in the weights.")

    def start(self, tasks: tuple[str, ...]) -> State:
        return {"weights": dict.fromkeys(tasks, 1.0), "first": {}}

    def update(self, state: State, seen: Mapping[str, Seen]) -> State:
        first = {**{task: item.loss for task, item in seen.items()}, **state["first"]}
        norms = {task: item.norm for task, item in seen.items() if item.norm is not None}
        mean = sum(norms.values()) / max(1, len(norms))
        weights = dict(state["weights"])
        if mean > 0:
            rates = {task: seen[task].loss / max(first[task], 1e-12) for task in norms}
            usual = sum(rates.values()) / len(rates)
            for task, norm in norms.items():
                target = mean * (rates[task] / usual if usual > 0 else 1.0) ** self.alpha
                slope = math.copysign(norm / mean / weights[task], norm - target) if norm != target else 0.0
                weights[task] = max(1e-3, weights[task] - self.learning_rate * slope)
        return {"weights": averaging_one(weights), "first": first}


class ExcessLoss(Weighting):
    """More weight where the loss is above a reference's (DoReMi: Xie et al. 2023, arXiv:2305.10429, algorithm 1).

    The reference is the loss that a model reached on the task before; a task that cannot be learnt has no excess.
    Exponentiated gradient ascent on the excess, clipped at 0, and mixed with equal weights. The excess is that of the
    task's mean loss in a step, where the paper clips token by token.
    """

    reference: dict[str, float] = Field(min_length=1, description="Task: the reference's mean loss, in nats.")
    step_size: float = Field(0.1, gt=0, description="Step of the ascent; the paper's batches of 512 allow 1.")
    smoothing: float = Field(1e-3, ge=0, lt=1, description="Part of equal weights that is mixed in.")

    def update(self, state: State, seen: Mapping[str, Seen]) -> State:
        grown = dict(state["weights"])
        for task, item in seen.items():
            grown[task] *= math.exp(self.step_size * max(0.0, item.loss - self.reference[task]))
        mixed = {task: (1 - self.smoothing) * w + self.smoothing for task, w in averaging_one(grown).items()}
        return {"weights": mixed}

    def missing(self, tasks: set[str]) -> set[str]:
        return tasks ^ set(self.reference)


class LossRatio(Weighting):
    """The loss now by the loss at first, to a power (loss-balanced task weighting: Liu et al. 2019, AAAI 33).

    A positive exponent, the paper's, gives more weight to tasks that lag behind. A negative one gives it to tasks
    that learn, and takes it from one that cannot be learnt.
    """

    exponent: float = Field(0.5, description="Above 0: towards tasks that lag; below 0: towards those that learn.")
    decay: float = Field(0.9, ge=0, lt=1, description="Weight of the past in the moving average of a task's loss.")

    def start(self, tasks: tuple[str, ...]) -> State:
        return {"weights": dict.fromkeys(tasks, 1.0), "first": {}, "now": {}}

    def update(self, state: State, seen: Mapping[str, Seen]) -> State:
        first, now = dict(state["first"]), dict(state["now"])
        for task, item in seen.items():
            first.setdefault(task, max(item.loss, 1e-12))
            now[task] = self.decay * now.get(task, item.loss) + (1 - self.decay) * item.loss
        ratios = {task: max(now[task], 1e-12) / first[task] for task in now}
        weights = {**state["weights"], **{task: ratio**self.exponent for task, ratio in ratios.items()}}
        return {"weights": averaging_one(weights), "first": first, "now": now}


class Dwa(Weighting):
    """Dynamic weight average (Liu et al. 2019, arXiv:1803.10704): more weight where the loss falls more slowly.

    Weights are T exp(r / temperature) / Σ exp(r / temperature) over the T tasks, r the ratio of a task's mean losses
    in the last two periods. A task that cannot be learnt gains weight by this rule.
    """

    every: int = Field(50, ge=1, description="Steps of a period.")
    temperature: float = Field(2.0, gt=0, description="The larger, the more equal.")

    def start(self, tasks: tuple[str, ...]) -> State:
        return {"weights": dict.fromkeys(tasks, 1.0), "sum": {}, "seen": {}, "before": {}, "steps": {"": 0.0}}

    def update(self, state: State, seen: Mapping[str, Seen]) -> State:
        total = {**state["sum"], **{task: state["sum"].get(task, 0.0) + item.loss for task, item in seen.items()}}
        count = {**state["seen"], **{task: state["seen"].get(task, 0.0) + 1 for task in seen}}
        steps = state["steps"][""] + 1
        if steps < self.every:
            return {**state, "sum": total, "seen": count, "steps": {"": steps}}
        means = {task: total[task] / count[task] for task in total}
        ratios = {task: mean / max(state["before"].get(task, mean), 1e-12) for task, mean in means.items()}
        fresh = {task: math.exp(ratios.get(task, 1.0) / self.temperature) for task in state["weights"]}
        before = {**state["before"], **means}
        return {"weights": averaging_one(fresh), "sum": {}, "seen": {}, "before": before, "steps": {"": 0.0}}


def averaging_one(weights: Mapping[str, float]) -> dict[str, float]:
    """The same weights, scaled to a mean of 1."""
    mean = sum(weights.values()) / len(weights)
    return {task: weight / mean for task, weight in weights.items()}
