"""Back-translation: a text goes into another language and comes back in other words.

Sennrich et al. 2016 (back-translated text as data), Edunov et al. 2018 (sampled or n-best translations are richer
than the best one), Xie et al. 2020 (UDA: round trips of labelled text keep the label).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from pydantic import Field

from tilth.augment.base import Augmenter, Sample, Variant, VariantsFunction
from tilth.augment.likeness import judged
from tilth.augment.segments import rewrite
from tilth.augment.translators import Pivot, RoundTrip
from tilth.data.transform import Inputs
from tilth.errors import Problem


class BackTranslation(Augmenter):
    """Round trips through one or several languages; variant i goes through pivot i modulo their number.

    Long texts are translated sentence by sentence and put together with the blanks they had. Each variant's `meta`
    holds `pivot`, and `chrf` and `edit_similarity` to the original; the label is kept.
    """

    version: ClassVar[int] = 3  # sentences of long lines are found piece by piece

    pivots: tuple[Pivot, ...] = Field((Pivot(),), min_length=1, description="Languages to go through.")
    language: str = Field("en", description="Language of the text, for cutting it into sentences.")
    near_identical: float = Field(
        0.95, ge=0, le=1, description="Reject a round trip with this edit similarity (of words) or more."
    )

    def check(self) -> list[Problem]:
        for index, (pivot, share) in enumerate(self._shares()):
            if (most := pivot.forward.most) < share:
                what = f"{self.variants} need {share} translations from pivot {index}, which gives {most}"
                return [Problem("variants", what, "ask for fewer, add a pivot, or sample (decoding.temperature)")]
        return []

    @property
    def made_by(self) -> str:
        return ", ".join(pivot.title for pivot in self.pivots)

    def _shares(self) -> list[tuple[Pivot, int]]:
        """The pivots in use, each with how many of the variants go through it."""
        step = len(self.pivots)
        return [(pivot, len(range(n, self.variants, step))) for n, pivot in enumerate(self.pivots[: self.variants])]

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        trips = [pivot.load(inputs, share) for pivot, share in self._shares()]
        return partial(self._variants, trips)

    def _variants(self, trips: Sequence[RoundTrip], samples: list[Sample]) -> list[list[Variant]]:
        texts = [sample.text for sample in samples]
        made = []
        for trip, (_, share) in zip(trips, self._shares(), strict=True):

            def make(parts: list[str], owners: list[int], trip: RoundTrip = trip) -> list[list[str]]:
                return trip(parts, [samples[owner].rng.getrandbits(63) for owner in owners])

            made.append(rewrite(texts, make, share, self.language))
        return [self._judged(sample.text, [trip[at] for trip in made]) for at, sample in enumerate(samples)]

    def _judged(self, original: str, by_pivot: Sequence[Sequence[str]]) -> list[Variant]:
        turns = [divmod(n, len(by_pivot)) for n in range(self.variants)]
        texts = [by_pivot[pivot][turn] for turn, pivot in turns]
        metas = [{"pivot": self.pivots[pivot].title} for _, pivot in turns]
        return judged(texts, original, self.near_identical, metas)
