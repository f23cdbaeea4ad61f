"""Cheap looks at completions that tell a policy which found a hole in its reward from one that became better."""

from __future__ import annotations

import re
from collections.abc import Sequence

_REFUSAL = re.compile(
    r"\b(i('m| am) sorry|i (can(no|')t|won't|am (not able|unable))|as an ai\b|i do(n't| not) feel comfortable)", re.I
)
Words = Sequence[str]


def probes(texts: Sequence[str]) -> dict[str, float]:
    """Means over completions: words, repeated trigrams, refusals; distinct bigrams are of all of them together."""
    words = [text.lower().split() for text in texts]
    count = max(1, len(texts))
    return {
        "words": sum(map(len, words)) / count,
        "repetition": sum(map(repetition, words)) / count,
        "distinct_2": distinct(words, 2),
        "refusals": sum(_REFUSAL.search(text) is not None for text in texts) / count,
    }


def repetition(words: Words, size: int = 3) -> float:
    """Share of a text's n-grams that stood in it before; 0 where it is too short for two."""
    found = _ngrams(words, size)
    return 1 - len(set(found)) / len(found) if found else 0.0


def distinct(texts: Sequence[Words], size: int) -> float:
    """Different n-grams by all n-grams of all texts (Li et al. 2016, arXiv:1510.03055)."""
    found = [gram for words in texts for gram in _ngrams(words, size)]
    return len(set(found)) / len(found) if found else 0.0


def _ngrams(words: Words, size: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
