"""Which rows each optimizer step sees, for several tasks: a pure function of the seed and the step's number.

So a resumed run sees what the first one would have, and any number of workers sees the same rows at the same step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from tilth.train.sampling import Sampling

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """`steps` optimizer steps of `batch` rows each, in passes of `pass_steps`; `sizes`: rows of each task, in order."""

    sampling: Sampling
    sizes: dict[str, int]
    batch: int
    steps: int
    pass_steps: int
    seed: int

    def shares(self) -> NDArray[np.float64]:
        """(steps, tasks): the expected share of each task in each step; rows add up to 1."""
        last = max(1, self.steps - 1)
        rates = [self.sampling.rates(self.sizes, min(1.0, step / last)) for step in range(self.steps)]
        table = np.array([[found[task] for task in self.sizes] for found in rates], dtype=np.float64)
        shares: NDArray[np.float64] = table / table.sum(axis=1, keepdims=True)
        return shares

    def counts(self) -> Counts:
        """(steps, tasks): rows of each task in each step, within one of share x batch and on average equal to it.

        Systematic sampling (Madow & Madow 1944): `batch` marks at equal distances from a random start, laid on the
        shares end to end.
        """
        edges = np.cumsum(self.shares(), axis=1) * self.batch
        edges[:, -1] = self.batch
        start = np.random.default_rng([self.seed, 1]).random((self.steps, 1))
        below = np.ceil(edges - start).clip(0, self.batch).astype(np.int64)
        return np.diff(below, axis=1, prepend=0)

    def rows(self, number: int, counts: Counts) -> list[int]:
        """Rows of pass `number` (0, 1, …), numbered within their tasks as `places` lays them out."""
        start, stop = number * self.pass_steps, min((number + 1) * self.pass_steps, self.steps)
        before, here = counts[:start].sum(axis=0), counts[start:stop]
        drawn = [self._drawn(task, before[task], here[:, task].sum()) for task in range(len(self.sizes))]
        ends = np.cumsum(here, axis=0)
        # the rows of a step lie task by task, so that a micro-batch holds few tasks; a step's sum has no order
        return [
            row
            for step, end in enumerate(ends)
            for task in range(len(self.sizes))
            for row in drawn[task][end[task] - here[step, task] : end[task]]
        ]

    def _drawn(self, task: int, before: int, count: int) -> list[int]:
        """The next `count` rows of a task after `before`: all of its rows, shuffled, then all shuffled anew, …"""
        first = sum(list(self.sizes.values())[:task])
        size = list(self.sizes.values())[task]
        found: list[int] = []
        for again in range(before // size, (before + count) // size + 1):
            order = np.random.default_rng([self.seed, 2, task, again]).permutation(size)
            skip = max(0, before - again * size)
            found += (first + order[skip : skip + count - len(found)]).tolist()
        return found


def places(tasks: Sequence[str]) -> dict[str, list[int]]:
    """The indices of each task's rows, tasks sorted by name."""
    found: dict[str, list[int]] = {task: [] for task in sorted(set(tasks))}
    for index, task in enumerate(tasks):
        found[task].append(index)
    return found


class TaskSampler(Sampler):  # type: ignore[misc]
    """A plan as what a DataLoader asks for: the indices of one pass after another."""

    def __init__(self, plan: Plan, index: dict[str, list[int]]) -> None:
        self.plan = plan
        self.epoch = 0
        self._index = [row for rows in index.values() for row in rows]
        self._counts: Any = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plan.pass_steps * self.plan.batch

    def __iter__(self) -> Iterator[int]:
        if self._counts is None:
            self._counts = self.plan.counts()
        yield from (self._index[row] for row in self.plan.rows(self.epoch, self._counts))
