"""An augmenter of your own: neighbouring letters change places, as fast typing does.

    tilth run examples/typos.yaml --out runs/typos

One method. Seeds, lineage, gates, retries and the exactly-once ledger are inherited; `sample.rng` belongs to the
row, so that a retried or re-batched row gets the same typos.
"""

from __future__ import annotations

from pydantic import Field

from tilth.augment.base import Augmenter, Sample, Variant, VariantsFunction
from tilth.augment.words import protected, replace, words
from tilth.data.transform import Inputs


class Typos(Augmenter):
    """Swaps two neighbouring letters in a share of the words (Belinkov & Bisk 2018, arXiv:1711.02173)."""

    share: float = Field(0.2, gt=0, le=1, description="Share of the words of at least four letters that are misspelt.")

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        return lambda samples: [[self.misspelt(sample) for _ in range(self.variants)] for sample in samples]

    def misspelt(self, sample: Sample) -> Variant:
        found = words(sample.text)
        kept = protected(sample.text, found, label=sample.label, extra=())
        free = [i for i, word in enumerate(found) if i not in kept and len(word.text) >= 4]
        chosen = sample.rng.sample(free, min(len(free), max(1, round(self.share * len(free)))))
        changes = {i: self.swapped(found[i].text, sample.rng.randrange(1, len(found[i].text) - 2)) for i in chosen}
        text = replace(sample.text, found, changes)
        return Variant(text, "unchanged: no word to misspell" if text == sample.text else None, {"typos": len(changes)})

    @staticmethod
    def swapped(word: str, at: int) -> str:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
