"""Running a model over items of unlike length: sorted, cut by a budget, halved where memory runs out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_batches(
    items: Sequence[T], run: Callable[[list[T]], Sequence[R]], *, size: int, length: Callable[[T], int]
) -> list[R]:
    """`run` over all items in batches of like length; one result for each item, in the order of `items`.

    A batch holds at most `size` padded tokens, that is its items times the length of its longest one (give
    `length=lambda _: 1` and `size` counts items). A single item over `size` is a batch by itself. The longest come
    first, so that memory runs out at the start or never; then the budget is halved for the rest of the call, and
    the error is raised only where one item alone does not fit. ValueError where `run` returns too many or too few.
    """
    lengths = [max(1, length(item)) for item in items]
    order = sorted(range(len(items)), key=lambda index: -lengths[index])
    results: dict[int, R] = {}
    while len(results) < len(items):
        start = len(results)
        longest = lengths[order[start]]
        batch = order[start : start + max(1, size // longest)]
        made = _unless_memory_runs_out(run, [items[index] for index in batch])
        if made is None:
            size = longest * len(batch) // 2
        else:
            results.update(zip(batch, made, strict=True))
    return [results[index] for index in range(len(items))]


def _unless_memory_runs_out(run: Callable[[list[T]], Sequence[R]], batch: list[T]) -> Sequence[R] | None:
    """What `run` returns; None where the device has no memory for several items at once."""
    try:
        return run(batch)
    except RuntimeError as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
    # only here, with the traceback gone, are the tensors of the failed call free
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device ran out of memory: PyTorch has a class for it, CTranslate2 only its words."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return "CUDA failed with error out of memory" in str(error)
