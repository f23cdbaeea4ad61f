"""Easy data augmentation (Wei and Zou 2019): random edits of single words. Shows all that an augmenter needs.

"The card still has not arrived" → "The bill still has not arrived" (synonym), "The card not has still arrived" (swap).
"""

from __future__ import annotations

import random
from functools import partial
from typing import ClassVar

from pydantic import Field

from tilth.augment.base import Augmenter, Sample, Variant, VariantsFunction
from tilth.augment.likeness import judged
from tilth.augment.wordnet import Synonyms, load_synonyms
from tilth.augment.words import protected, replace, uncapitalised, words
from tilth.data.transform import Inputs
from tilth.errors import Problem


def _synonyms(slots: list[str], free: list[int], count: int, synonyms: Synonyms, rng: random.Random) -> None:
    able = [index for index in free if synonyms(slots[index])]
    for index in rng.sample(able, min(count, len(able))):
        slots[index] = rng.choice(synonyms(slots[index]))


def _insertions(slots: list[str], free: list[int], count: int, synonyms: Synonyms, rng: random.Random) -> None:
    able = [word for word in slots if synonyms(word)]
    for _ in range(count if able and free else 0):
        slots[rng.choice(free)] += " " + rng.choice(synonyms(rng.choice(able)))


def _swaps(slots: list[str], free: list[int], count: int, synonyms: Synonyms, rng: random.Random) -> None:
    for _ in range(count if len(free) > 1 else 0):
        one, other = rng.sample(free, 2)
        slots[one], slots[other] = slots[other], slots[one]


def _deletions(slots: list[str], free: list[int], count: int, synonyms: Synonyms, rng: random.Random) -> None:
    for index in rng.sample(free, max(0, min(count, len(free), len(slots) - 1))):
        slots[index] = ""


EDITS = {"synonyms": _synonyms, "insertions": _insertions, "swaps": _swaps, "deletions": _deletions}


class Eda(Augmenter):
    """Each variant undergoes one kind of edit, max(1, rate × words) times; the kinds take turns in random order.

    `variants` is the paper's n_aug, the rates are its alpha; 0 turns a kind off. Numbers, names, addresses and words
    of the label are never touched. Deletion takes a fixed number of words where the paper tosses a coin for each.
    """

    version: ClassVar[int] = 3  # a text without words keeps its row, with variants that say `unchanged`

    synonyms: float = Field(0.1, ge=0, le=1, description="Share of words replaced by a WordNet synonym.")
    insertions: float = Field(0.1, ge=0, le=1, description="Share of words of which a synonym is put in anywhere.")
    swaps: float = Field(0.1, ge=0, le=1, description="Pairs of words that change places, as a share of the words.")
    deletions: float = Field(0.1, ge=0, le=1, description="Share of words left out.")
    protect: tuple[str, ...] = Field((), description="More words or phrases that stay as they are.")

    def check(self) -> list[Problem]:
        if any(getattr(self, name) for name in EDITS):
            return []
        return [Problem("", "changes nothing: all rates are 0", f"set one of {', '.join(EDITS)}")]

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        variants = partial(self._variants, load_synonyms())
        return lambda samples: [variants(sample) for sample in samples]

    def _variants(self, synonyms: Synonyms, sample: Sample) -> list[Variant]:
        found = words(sample.text)
        fixed = protected(sample.text, found, label=sample.label, extra=self.protect)
        free = [index for index in range(len(found)) if index not in fixed]
        before = [word.text if index in fixed else uncapitalised(word.text) for index, word in enumerate(found)]
        rates = {name: rate for name in EDITS if (rate := getattr(self, name))}
        turns = sample.rng.sample(list(rates), len(rates))
        texts = []
        for number in range(self.variants):
            name, slots = turns[number % len(turns)], list(before)
            EDITS[name](slots, free, max(1, int(rates[name] * len(slots))), synonyms, sample.rng)
            changes = {index: slot for index, slot in enumerate(slots) if slot != before[index]}
            texts.append(replace(sample.text, found, changes))
        metas = [{"edit": turns[number % len(turns)]} for number in range(self.variants)]
        return judged(texts, sample.text, 1.0, metas)
