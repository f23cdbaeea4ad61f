"""The learners among themselves: what all of them know, and who takes which samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
#: numbers that are summed over the ranks in one message
BUCKET = 32 * 2**20


@dataclass(frozen=True)
class Ranks:
    """This learner's place among all of them; alone, nothing is ever sent."""

    rank: int = 0
    world: int = 1

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a list that all of them have, in order."""
        size = -(-len(items) // self.world)
        return list(items[self.rank * size : (self.rank + 1) * size])

    def together(self, items: list[T]) -> list[T]:
        """The parts of all ranks, one after the other, the same on each."""
        if self.world == 1:
            return items
        parts: list[list[T]] = [[] for _ in range(self.world)]
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def sum(self, tensor: Tensor, device: Any = "cpu") -> Tensor:
        """The sum over all ranks, on the CPU; `device` is where messages travel from."""
        if self.world == 1:
            return tensor
        sent = tensor.to(device)
        dist.all_reduce(sent)
        return sent.cpu()

    def sum_gradients(self, weights: Iterable[Tensor]) -> None:
        """Add up the gradients of all ranks, several weights in one message; a missing one counts as zero."""
        if self.world == 1:
            return
        for bucket in _buckets(list(weights)):
            flat = torch.cat([(w.grad if w.grad is not None else torch.zeros_like(w)).flatten() for w in bucket])
            dist.all_reduce(flat)
            for weight, part in zip(bucket, flat.split([w.numel() for w in bucket]), strict=True):
                weight.grad = part.view_as(weight)


#: a learner without others
ALONE = Ranks()


def _buckets(weights: list[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    for weight in weights:
        if bucket and (sum(w.numel() for w in bucket) + weight.numel() > BUCKET or weight.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(weight)
    if bucket:
        yield bucket
