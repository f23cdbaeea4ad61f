"""How like two texts are, by their words alone: what a rewriter measures of its variants, and which it rejects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from tilth.augment.base import Variant
from tilth.augment.words import words


def plain(text: str) -> tuple[str, ...]:
    """The words of `text` without capitals and punctuation: texts that agree in these are the same variant."""
    return tuple(word.text.casefold() for word in words(text))


def edit_similarity(one: str, other: str) -> float:
    """Share of words that both have in the same order (Indel similarity), 0 to 1; 1 for a change of case only."""
    return _in_order(plain(one), plain(other))


def chrf(text: str, reference: str) -> float:
    """chrF (Popović 2015) of `text` against `reference` by sacrebleu's defaults, 0 to 100."""
    score: float = _chrf().sentence_score(text, [reference]).score
    return round(score, 1)


def judged(
    texts: Sequence[str], original: str, near_identical: float, metas: Sequence[Mapping[str, Any]]
) -> list[Variant]:
    """Rewritings of one text as variants: measured, with a reason for those that say nothing new.

    Adds `chrf` and `edit_similarity` to the original to each `meta`; from `near_identical` on a text is unchanged.
    """
    before = plain(original)
    first: dict[tuple[str, ...], int] = {}
    variants = []
    for number, (text, meta) in enumerate(zip(texts, metas, strict=True)):
        after = plain(text)
        similarity = _in_order(after, before)
        measured = {**meta, "chrf": chrf(text, original), "edit_similarity": round(similarity, 3)}
        same_as = first.setdefault(after, number)
        reason = None
        if before and not after:
            reason = "empty: no word is left"
        elif similarity >= near_identical:
            reason = f"unchanged: edit similarity {similarity:.2f} is not under {near_identical:g}"
        elif same_as != number:
            reason = f"duplicate: the same words as variant {same_as}"
        variants.append(Variant(text, reason, measured))
    return variants


def without_repeats(variants: Sequence[Variant]) -> list[Variant]:
    """The variants of one text, with a reason for those that say what an earlier one that is kept says."""
    first: dict[tuple[str, ...], int] = {}
    found = []
    for number, variant in enumerate(variants):
        same_as = number if variant.reason else first.setdefault(plain(variant.text), number)
        reason = variant.reason if same_as == number else f"duplicate: the same words as variant {same_as}"
        found.append(replace(variant, reason=reason))
    return found


def _in_order(one: Sequence[str], other: Sequence[str]) -> float:
    from rapidfuzz.distance import Indel

    return float(Indel.normalized_similarity(one, other))


@cache
def _chrf() -> Any:
    from sacrebleu import CHRF

    return CHRF()
