"""Drawing splits and samples of many rows: pure functions of row ids, labels and a seed, on arrays.

Splits are the index of their name in `SPLITS` (int8), labels any whole number (int32), -1 for none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tilth.data.schema import SPLITS
from tilth.data.split import Sampling, Split

TRAIN, VALIDATION, TEST = range(len(SPLITS))


def places(seed: int, roots: Iterable[str], purpose: str) -> NDArray[np.float64]:
    """`tilth.data.split.place` of each root id."""
    head = f"{seed}\x00{purpose}\x00".encode()
    data = (head + root.encode("utf-8", "surrogatepass") for root in roots)
    digests = b"".join(hashlib.blake2b(item, digest_size=8).digest() for item in data)
    return np.frombuffer(digests, ">u8") / 2.0**64


def drawn(roots: Sequence[str], split: Split) -> NDArray[np.int8]:
    """The split of each root id, from that id alone."""
    if not split.test and not split.validation:
        return np.full(len(roots), TRAIN, np.int8)
    where = places(split.seed, roots, "split")
    held_out = np.where(where < split.test, TEST, VALIDATION)
    return np.where(where < split.test + split.validation, held_out, TRAIN).astype(np.int8)


def stratified(labels: NDArray[np.int32], split: Split) -> NDArray[np.int8]:
    """The split of each row; rows come with ascending place."""
    counts = np.bincount(labels + 1)
    test, held_out = np.array([_edges(rows, split) for rows in counts.tolist()]).reshape(-1, 2)[labels + 1].T
    before = ordinals(labels)
    return np.select([before < test, before < held_out], [TEST, VALIDATION], TRAIN).astype(np.int8)


def _edges(rows: int, split: Split) -> tuple[int, int]:
    """How many of the first rows of a label are for the test, and how many for test and validation together.

    Whole numbers nearest to the shares, halves up; cumulative, so that no row is lost between two.
    """
    test, validation = Fraction(str(split.test)), Fraction(str(split.validation))
    return int(rows * test + Fraction(1, 2)), int(rows * (test + validation) + Fraction(1, 2))


def ordinals(values: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many with the same value come before each."""
    index = np.argsort(values, kind="stable")
    ordered = values[index]
    begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(values)])
    found = np.empty(len(values), np.int64)
    found[index] = np.arange(len(values)) - np.repeat(begins, np.diff(begins, append=len(values)))
    return found


def not_sampled(
    splits: NDArray[np.int8], labels: NDArray[np.int32], label_names: Sequence[str], sampling: Sampling
) -> NDArray[np.uint8]:
    """0 for a row that is in the sample, else one more than the index of the reason among `reasons`.

    Rows come with ascending place, so that a larger sample contains the smaller one.
    """
    found = np.zeros(len(splits), np.uint8)
    if sampling.labels is not None:
        wanted = np.array([*(name in sampling.labels for name in label_names), False])  # -1 is no label
        found[~wanted[labels]] = 1
    for split in sampling.splits:
        chosen = np.flatnonzero((splits == SPLITS.index(split)) & (found == 0))
        found[chosen] = _over(labels[chosen], sampling)
    return found


def reasons(sampling: Sampling) -> tuple[str, ...]:
    """Why a row may not be in the sample."""
    return (
        "not_sampled: its label is not among those asked for",
        f"not_sampled: over {sampling.per_label} of its label",
        f"not_sampled: over {sampling.rows} rows",
    )


def _over(labels: NDArray[np.int32], sampling: Sampling) -> NDArray[np.uint8]:
    """Of the rows of one split: 2 for those that are too many of their label, 3 for those that are too many in all."""
    per_label = sampling.per_label or len(labels)
    early = ordinals(labels) < per_label
    taken = early & (np.cumsum(early) <= (sampling.rows or len(labels)))
    full = np.bincount(labels[taken] + 1, minlength=labels.max(initial=-1) + 2) == per_label
    return np.select([taken, full[labels + 1]], [0, 2], 3).astype(np.uint8)
