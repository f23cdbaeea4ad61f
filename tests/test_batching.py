"""Length-sorted batches by a token budget, and what happens when memory runs out."""

from __future__ import annotations

import random

import pytest
import torch

from tilth.data.batching import in_batches


def test_results_come_in_the_order_of_the_items_whatever_the_batches() -> None:
    words = ["x" * random.Random(n).randint(0, 40) for n in range(200)]
    for size in (1, 7, 64, 10_000):
        assert in_batches(words, lambda batch: [len(word) for word in batch], size=size, length=len) == [
            len(word) for word in words
        ]


def test_a_batch_stays_within_its_padded_budget_and_holds_like_lengths() -> None:
    seen: list[list[str]] = []

    def run(batch: list[str]) -> list[str]:
        seen.append(batch)
        return batch

    words = ["x" * (1 + n % 30) for n in range(300)]
    in_batches(words, run, size=100, length=len)
    assert all(len(batch) * max(map(len, batch)) <= 100 for batch in seen)
    # padding is what sorting saves: the same words in the given order would pad to far more
    padded = sum(len(batch) * max(map(len, batch)) for batch in seen)
    assert padded <= 1.1 * sum(map(len, words))


def test_an_item_over_the_budget_goes_alone() -> None:
    sizes: list[int] = []
    in_batches(["long" * 50, "a", "b"], lambda b: sizes.append(len(b)) or b, size=10, length=len)  # type: ignore[func-returns-value]
    assert sizes == [1, 2]


def test_a_constant_length_counts_items() -> None:
    sizes: list[int] = []
    in_batches(list(range(10)), lambda b: sizes.append(len(b)) or b, size=4, length=lambda _: 1)  # type: ignore[func-returns-value]
    assert sizes == [4, 4, 2]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA failed with error out of memory")]
)
def test_out_of_memory_halves_the_batch_for_good_and_loses_nothing(error: RuntimeError) -> None:
    sizes: list[int] = []

    def run(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise error
        return [-item for item in batch]

    assert in_batches(list(range(16)), run, size=16, length=lambda _: 1) == [-n for n in range(16)]
    assert sizes[:4] == [16, 8, 4, 2]
    assert max(sizes[3:]) == 2


def test_out_of_memory_on_one_item_is_an_error() -> None:
    def run(batch: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_batches([1, 2], run, size=2, length=lambda _: 1)


def test_any_other_error_is_not_retried() -> None:
    calls: list[int] = []

    def run(batch: list[int]) -> list[int]:
        calls.append(1)
        raise RuntimeError("expected scalar type Half but found Float")

    with pytest.raises(RuntimeError, match="scalar type"):
        in_batches([1, 2], run, size=2, length=lambda _: 1)
    assert len(calls) == 1


def test_a_run_that_loses_items_is_an_error() -> None:
    with pytest.raises(ValueError):
        in_batches([1, 2, 3], lambda batch: batch[:-1], size=3, length=lambda _: 1)


def test_nothing_gives_nothing() -> None:
    assert in_batches([], lambda batch: batch, size=3, length=len) == []
