"""Weights on their way to vLLM's processes on the same machine: through memory that both sides map, never a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

#: bytes in one bucket; a larger weight has one to itself
BUCKET = 2**28
#: where a weight begins is a multiple of this
_ALIGNED = 64
#: a weight in a bucket: its name, its dtype's, its shape, where it begins and ends
Packed = tuple[str, str, list[int], int, int]


def mapped(path: str, size: int) -> torch.Tensor:
    """Memory of some process as bytes [size], shared with it."""
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


async def send(engine: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Give an engine whose worker is extended by `reloading.Reloading` all weights, by their names in a checkpoint.

    No more than a bucket is held beside the weights themselves. What the engine remembers of prompts is forgotten.
    """
    size = max([BUCKET, *(_room(weight) for weight in weights.values())])
    # it has no name, so that nothing is left behind whatever happens; processes of the same user open it by its number
    number = os.memfd_create("tilth-weights")
    try:
        os.ftruncate(number, size)
        path = f"/proc/{os.getpid()}/fd/{number}"
        await engine.collective_rpc("begin_weights")
        for bucket in _filled(mapped(path, size), weights):
            await engine.collective_rpc("take_weights", args=(path, size, bucket))
        await engine.collective_rpc("end_weights")
    finally:
        os.close(number)
    await engine.reset_prefix_cache()


def _filled(memory: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> Iterator[list[Packed]]:
    """What lies in the memory, each time that it is full."""
    bucket: list[Packed] = []
    at = 0
    for name, weight in weights.items():
        if bucket and at + _room(weight) > memory.numel():
            yield bucket
            bucket, at = [], 0
        place = memory[at : at + weight.nbytes]
        place.view(weight.dtype).view(weight.shape).copy_(weight.detach())
        bucket.append((name, str(weight.dtype).removeprefix("torch."), list(weight.shape), at, at + weight.nbytes))
        at += _room(weight)
    yield bucket


def _room(weight: torch.Tensor) -> int:
    return int(-(-weight.nbytes // _ALIGNED) * _ALIGNED)
