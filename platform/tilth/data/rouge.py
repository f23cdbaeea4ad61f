"""ROUGE-L of many pairs: the figures of rouge-score, by bit-parallel subsequences and with pairs ruled out by length.

ROUGE-L (Lin 2004) is the F measure of the longest common subsequence of two texts' words: twice its length over that
of both texts. Of texts of 11 words a core judges about 60 million pairs a second, of 120 words 1 million.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilth.data.dedup import normalise, words

_SEPARATORS = re.compile(r"[^a-z0-9]+")
#: texts looked up together, and those of like length among them that share one slice of the pool
_BLOCK, _GROUP = 256, 32
#: scores that differ by less are computed exactly before they are compared
_CLOSE = 1e-9
#: rapidfuzz rounds its cutoff: exactly at it, pairs would be lost
_SLACK = 1e-4

Split = Callable[[str], list[str]]


def rouge_tokens(text: str) -> list[str]:
    """Runs of a-z and 0-9 in lower case, as rouge-score splits without its stemmer: no other script leaves anything."""
    return _SEPARATORS.sub(" ", text.lower()).split()


def word_tokens(text: str) -> list[str]:
    """The words of any script, as `data.dedup` compares them."""
    return words(normalise(text))


def rouge_l(left: str, right: str, split: Split = rouge_tokens) -> float:
    """ROUGE-L F of two texts, 0 to 1; 0 where one has no words."""
    pool = Pool(split)
    return _score(pool.coded(left), pool.coded(right))


def _score(left: str, right: str) -> float:
    """The formula of rouge-score in its order, so that the last bit agrees too."""
    from rapidfuzz.distance import LCSseq

    common = LCSseq.similarity(left, right)
    if not common:
        return 0.0
    precision, recall = common / len(left), common / len(right)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class Nearest:
    """The text of a pool that another one is most like, by its place in the pool, and the ROUGE-L of both."""

    index: int
    score: float


class Pool:
    """Texts in the order in which they were taken in; tells what a new one is most like, and takes in what passes."""

    def __init__(self, split: Split = rouge_tokens) -> None:
        self.split = split
        self._words: dict[str, str] = {}
        self._texts: list[str] = []
        self._by_length: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._texts)

    def coded(self, text: str) -> str:
        """A character for each word: rapidfuzz is fastest on strings."""
        return "".join(self._words.setdefault(word, chr(len(self._words) + 1)) for word in self.split(text))

    def take(self, texts: Iterable[str]) -> None:
        """Take texts in as they are."""
        for text in texts:
            self._take(self.coded(text))

    def screen(self, texts: Sequence[str], threshold: float) -> list[Nearest | None]:
        """For each text the member most like it, at `threshold` or above; a text that has none is taken in.

        In order: of two like texts the first is a member by the time the second is looked at. Of members that are
        equally like a text the first is named.
        """
        found: list[Nearest | None] = []
        for start in range(0, len(texts), _BLOCK):
            found += self._screen([self.coded(text) for text in texts[start : start + _BLOCK]], threshold)
        return found

    def _screen(self, block: list[str], threshold: float) -> list[Nearest | None]:
        """A block: beside the members that were there before all at once, beside those it adds one by one."""
        before = len(self)
        candidates = self._candidates(block, threshold)
        found: list[Nearest | None] = []
        for place, text in enumerate(block):
            others = (*candidates.get(place, ()), *range(before, len(self)))
            scored = [Nearest(index, _score(text, self._texts[index])) for index in others]
            near = [item for item in scored if item.score >= threshold]
            found.append(min(near, key=lambda item: (-item.score, item.index)) if near else None)
            if not near:
                self._take(text)
        return found

    def _take(self, text: str) -> None:
        insort(self._by_length, (len(text), len(self._texts)))
        self._texts.append(text)

    def _candidates(self, block: list[str], threshold: float) -> dict[int, list[int]]:
        """For each text of the block that has any: the members that are most like it, those within rounding of it."""
        from rapidfuzz.distance import Indel
        from rapidfuzz.process import cdist

        found: dict[int, list[int]] = {}
        for places in _groups(block):
            asking = [block[place] for place in places]
            members = self._of_like_length(len(asking[0]), len(asking[-1]), threshold)
            pool = [self._texts[index] for index in members]
            # indel similarity is twice the common subsequence over both lengths: ROUGE-L but for the last bit
            options: dict[str, Any] = {"score_cutoff": threshold - _SLACK, "dtype": np.float64, "workers": -1}
            scores = cdist(asking, pool, scorer=Indel.normalized_similarity, **options)
            best = scores.max(axis=1, initial=0.0)
            for row in np.flatnonzero(best).tolist():
                found[places[row]] = [members[i] for i in np.flatnonzero(scores[row] >= best[row] - _CLOSE).tolist()]
        return found

    def _of_like_length(self, shortest: int, longest: int, threshold: float) -> list[int]:
        """Members that may reach the threshold: 2 min(a, b) / (a + b) bounds the score of lengths a and b."""
        ratio = threshold / (2 - threshold) - _CLOSE
        low = bisect_left(self._by_length, (int(shortest * ratio), 0))
        high = bisect_right(self._by_length, (int(longest / ratio) + 1, len(self)))
        return [index for _, index in self._by_length[low:high]]


def _groups(block: list[str]) -> Iterator[list[int]]:
    """Places of texts of like length; a text without words is like none."""
    order = sorted((place for place, text in enumerate(block) if text), key=lambda place: len(block[place]))
    for start in range(0, len(order), _GROUP):
        yield order[start : start + _GROUP]
