"""Candidate pairs of near-duplicates among millions of texts: MinHash (Broder, 1997) and banded LSH.

Signatures are datasketch's. The index is ours: datasketch's keeps a Python set for each bucket (several GB for a
million rows), while this one keeps 8 bytes for each band of a row and remembers only the buckets that are shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tilth.data.dedup import shingles

PERMUTATIONS = 128
#: share of the pairs exactly at the threshold that become candidates; pairs above it are found more surely
RECALL = 0.99
_CHUNK = 4096
_MIX = np.uint64(0x9E3779B97F4A7C15)

Bands = np.ndarray[Any, np.dtype[np.uint64]]
Buckets = np.ndarray[Any, np.dtype[np.int64]]


def band_shape(threshold: float, permutations: int = PERMUTATIONS) -> tuple[int, int]:
    """(bands, rows of each): the longest bands that still find a pair at `threshold` with probability RECALL.

    Two sets of Jaccard similarity s share a band with probability 1 - (1 - s^rows)^bands
    (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4).
    """
    for rows in range(permutations, 1, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return permutations, 1


def signatures(texts: Iterable[str], size: int) -> Iterator[np.ndarray[Any, np.dtype[np.uint32]]]:
    """The MinHash (128,) of each text's shingles of `size` words."""
    from datasketch import MinHash

    encoded = ([item.encode("utf-8", "surrogatepass") for item in shingles(text, size)] for text in texts)
    for sketch in MinHash.generator(encoded, num_perm=PERMUTATIONS, seed=1, scheme="affine32"):
        yield sketch.hashvalues


def band_keys(texts: Iterable[str], size: int, threshold: float) -> Bands:
    """One 64-bit key for each text and band (n, bands): equal keys in a band make two texts candidates."""
    bands, rows = band_shape(threshold)
    chunks: list[Bands] = []
    pending: list[np.ndarray[Any, Any]] = []
    for signature in signatures(texts, size):
        pending.append(signature[: bands * rows])
        if len(pending) == _CHUNK:
            chunks.append(_fold(np.stack(pending), bands))
            pending = []
    if pending:
        chunks.append(_fold(np.stack(pending), bands))
    return np.concatenate(chunks) if chunks else np.empty((0, bands), np.uint64)


def _fold(signature: np.ndarray[Any, Any], bands: int) -> Bands:
    """(n, bands x rows) 32-bit hashes → (n, bands) 64-bit keys."""
    parts = signature.astype(np.uint64).reshape(len(signature), bands, -1)
    keys = np.zeros(parts.shape[:2], np.uint64)
    for row in range(parts.shape[2]):
        keys = mixed(keys, parts[:, :, row])
    return keys


def mixed(keys: Bands, values: Bands) -> Bands:
    """Keys with one more value in each; the arithmetic wraps round."""
    keys = (keys ^ values) * _MIX
    keys ^= keys >> np.uint64(29)
    return keys


def shared_buckets(keys: Bands) -> Buckets:
    """The number of each text's bucket in each band (n, bands), -1 where it is alone in it.

    Two texts are candidates exactly where they have a number other than -1 in common.
    """
    numbers = np.full(keys.shape, -1, np.int64)
    first = 0
    for band in range(keys.shape[1]):
        _, inverse, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        crowded = counts > 1
        renumbered = np.where(crowded, np.cumsum(crowded) - 1 + first, -1)
        numbers[:, band] = renumbered[inverse]
        first += int(crowded.sum())
    return numbers
