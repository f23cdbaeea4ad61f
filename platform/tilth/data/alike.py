"""Which vectors say again what an earlier one said: SemDeDup (Abbas et al. 2023, arXiv:2303.09540) by blocks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

#: vectors among which every pair is compared; beyond that, those of a bucket
EXACT = 16_384
BUCKET = 4096
_BLOCK = 4096

Matrix = np.ndarray[Any, np.dtype[np.float32]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Twin:
    """The first kept vector that another one is like."""

    index: int
    cosine: float


def twins(vectors: Matrix, judged: Flags, threshold: float, exact: int = EXACT) -> dict[int, Twin]:
    """For each judged vector (n, d; unit length) the first earlier kept one at `threshold` or above, where there is.

    Vectors that have a twin are not kept: nothing is compared with them, so that a chain of small steps does not
    swallow what is far from all that stays. Those not judged are kept. Up to `exact` vectors every pair is looked
    at. Beyond, k-means deals them into buckets of about 4,096 and a pair is found where one lies in the nearest or
    second nearest bucket of the other. Memory beyond the vectors: about 0.2 GB.
    """
    buckets = nearest_buckets(vectors, exact)
    kept: dict[int, list[int]] = defaultdict(list)
    dropped = np.zeros(len(vectors), bool)
    found: dict[int, Twin] = {}
    for start in range(0, len(vectors), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(vectors)))
        hits = _hits(vectors, block, judged, buckets, kept, threshold)
        for index in block.tolist():
            alike = np.concatenate(hits[index]) if index in hits else block[:0]
            alike = alike[~dropped[alike]]
            if alike.size:
                dropped[index] = True
                found[index] = _twin(vectors, index, int(alike.min()))
            else:
                kept[int(buckets[index, 0])].append(index)
    return found


def _twin(vectors: Matrix, index: int, other: int) -> Twin:
    return Twin(other, float(vectors[index] @ vectors[other]))


def _hits(
    vectors: Matrix, block: Indices, judged: Flags, buckets: Indices, kept: dict[int, list[int]], threshold: float
) -> dict[int, list[Indices]]:
    """What each judged vector of a block is like: the first kept one of each bucket, and all before it in the block."""
    found: dict[int, list[Indices]] = defaultdict(list)
    for bucket in np.unique(buckets[block]).tolist():
        asking = block[judged[block] & (buckets[block] == bucket).any(axis=1)]
        for members in _parts(np.asarray(kept[bucket], np.int64)):
            near = vectors[asking] @ vectors[members].T >= threshold
            for row in np.flatnonzero(near.any(axis=1)).tolist():
                found[int(asking[row])].append(members[near[row].argmax(keepdims=True)])
        own = block[buckets[block, 0] == bucket]
        near = (vectors[asking] @ vectors[own].T >= threshold) & (own[None, :] < asking[:, None])
        for row in np.flatnonzero(near.any(axis=1)).tolist():
            found[int(asking[row])].append(own[near[row]])
    return found


def _parts(members: Indices) -> Iterator[Indices]:
    for start in range(0, len(members), _BLOCK):
        yield members[start : start + _BLOCK]


def nearest_buckets(vectors: Matrix, exact: int = EXACT) -> Indices:
    """The nearest bucket of each vector and the second nearest (n, 2); (n, 1) of zeros where one bucket is enough."""
    if len(vectors) <= exact:
        return np.zeros((len(vectors), 1), np.int64)
    from sklearn.cluster import MiniBatchKMeans

    count = max(2, math.ceil(len(vectors) / min(BUCKET, exact)))
    model = MiniBatchKMeans(count, batch_size=4096, n_init=1, random_state=0).fit(vectors)
    centres = model.cluster_centers_ / np.maximum(np.linalg.norm(model.cluster_centers_, axis=1, keepdims=True), 1e-9)
    blocks = (vectors[start : start + _BLOCK] @ centres.T for start in range(0, len(vectors), _BLOCK))
    return np.concatenate([np.argsort(-block, axis=1, kind="stable")[:, :2] for block in blocks]).astype(np.int64)
