"""Runs of words that texts share with a reference, by 64-bit hashes: contamination as GPT-3 and PaLM counted it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tilth.data.dedup import normalise, words
from tilth.data.minhash import mixed

#: a reference of fewer words is compared as a whole: a run of it would be found in anything
LEAST = 8

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Owners = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Overlap:
    """A reference that a text shares runs of words with. `size` 0: both are the same text."""

    index: int
    size: int
    share: float


@dataclass(frozen=True)
class Index:
    """Runs of reference texts: keys and the texts that own them, sorted by key; 12 bytes for each run.

    `sizes`: words in a run of each text, 0 where it is compared whole; `runs`: its different runs.
    """

    keys: Hashes
    owners: Owners
    sizes: Owners
    runs: Owners

    @staticmethod
    def of(texts: Iterable[str], size: int, common: int) -> Index:
        """All runs of `size` words; of a text with fewer the text, from LEAST words on wherever it stands in another.

        Runs that more than `common` texts share are left out, as GPT-3 did: they are the wording of the task.
        """
        parts: list[Hashes] = []
        sizes: list[int] = []
        for text in texts:
            tokens = hashed_words(text)
            run = min(size, len(tokens))
            sizes.append(run if run >= min(LEAST, size) else 0)
            parts.append(runs_of(tokens, run) if sizes[-1] else whole(tokens))
        counts = np.array([len(part) for part in parts], np.int32)
        keys = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        owners = np.repeat(np.arange(len(parts), dtype=np.int32), counts)
        order = np.argsort(keys, kind="stable")
        keys, owners = keys[order], owners[order]
        _, inverse, shared = np.unique(keys, return_inverse=True, return_counts=True)
        kept = (shared[inverse] <= common) | (np.array(sizes, np.int32)[owners] == 0)
        return Index(keys[kept], owners[kept], np.array(sizes, np.int32), counts)

    def find(self, text: str, share: float = 0.0) -> Overlap | None:
        """The reference of which the text holds the largest share of runs, `share` at least and one run in any case."""
        hits = self.hits(text, share)
        if not hits:
            return None
        index, most = max(hits, key=lambda hit: hit[1])
        return Overlap(index, int(self.sizes[index]), most)

    def hits(self, text: str, share: float = 0.0) -> list[tuple[int, float]]:
        """Every reference of whose runs the text holds `share` at least and one in any case, each with its share."""
        tokens = hashed_words(text)
        hits = [self._owners(whole(tokens))]
        hits += [self._owners(runs_of(tokens, size)) for size in np.unique(self.sizes[self.sizes > 0]).tolist()]
        found, counts = np.unique(np.concatenate(hits), return_counts=True)
        shares = counts / self.runs[found]
        return [pair for pair in zip(found.tolist(), shares.tolist(), strict=True) if pair[1] >= share]

    def _owners(self, keys: Hashes) -> Owners:
        """The owners of all references' runs that are among the given ones."""
        first, last = (np.searchsorted(self.keys, keys, side=side) for side in ("left", "right"))
        spans = [np.arange(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True) if a < b]
        return self.owners[np.concatenate(spans)] if spans else np.empty(0, np.int32)


def hashed_words(text: str) -> Hashes:
    """A hash for each word of the normalised text."""
    return np.array([_hash(word) for word in words(normalise(text))], np.uint64)


@lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    data = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(data, "big")


def runs_of(tokens: Hashes, size: int) -> Hashes:
    """The different runs of `size` words, as hashes; none of a text with fewer."""
    count = len(tokens) - size + 1
    if count <= 0 or size <= 0:
        return np.empty(0, np.uint64)
    keys = np.full(count, size, np.uint64)
    for place in range(size):
        keys = mixed(keys, tokens[place : place + count])
    return np.unique(keys)


def whole(tokens: Hashes) -> Hashes:
    """One hash of a whole text, unlike that of any run; none of a text without words."""
    if not len(tokens):
        return np.empty(0, np.uint64)
    return ~runs_of(tokens, len(tokens))
