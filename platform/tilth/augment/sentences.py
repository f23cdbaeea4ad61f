"""Changes of whole sentences: leave one out, let two change places, add a related one of the same label.

Yan et al. 2019 (sentence-level augmentation for long documents); the added sentence comes from another row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tilth.augment.base import Augmenter, Sample, Variant
from tilth.augment.likeness import judged
from tilth.augment.segments import Span, rebuild, sentences
from tilth.data.schema import Row
from tilth.data.transform import Inputs, RowsFunction

if TYPE_CHECKING:
    from tilth.augment.sentence_pool import SentencePool
    from tilth.data.transform import Fitted

Change = Literal["drop", "swap", "add"]
Step = Callable[[str, list[Span], random.Random], str]


class Sentences(Augmenter):
    """Each variant undergoes one change of a sentence; the changes take turns in random order.

    Dropping and swapping need a text of at least two sentences. Added ones are the most similar by TF-IDF among the
    train rows of the same label (of all rows where there are no labels), never of the same root: variant after
    variant the next most similar, put at a random place.
    """

    version: ClassVar[int] = 3  # sentences of long lines are found piece by piece

    changes: tuple[Change, ...] = Field(("drop", "swap", "add"), min_length=1, description="Changes in use.")
    language: str = Field("en", description="Language of the text, for cutting it into sentences.")
    pool: int = Field(200, ge=1, description="Sentences of each label kept to choose from.")

    def fit(self, rows: Iterable[Row], inputs: Inputs) -> Fitted:
        if "add" not in self.changes:
            return {}
        from tilth.augment.sentence_pool import gather

        return gather(rows, self.field, self.language, self.pool, self.seed)

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        from tilth.augment.sentence_pool import SentencePool

        pool = SentencePool(fitted) if fitted else None
        return self.adding(lambda samples: [self._variants(pool, sample) for sample in samples])

    def _variants(self, pool: SentencePool | None, sample: Sample) -> list[Variant]:
        spans = sentences(sample.text, self.language)
        related = pool.related(sample.text, sample.label, sample.row["root"], self.variants) if pool else []
        able = [change for change in self.changes if (related if change == "add" else len(spans) > 1)]
        if not able:
            return [Variant(sample.text, "unchanged: one sentence, and none of its label to add")] * self.variants
        turns = sample.rng.sample(able, len(able))
        steps: dict[Change, Step] = {"drop": _drop, "swap": _swap, "add": partial(_add, related)}
        names = [turns[number % len(turns)] for number in range(self.variants)]
        texts = [steps[name](sample.text, spans, sample.rng) for name in names]
        return judged(texts, sample.text, 1.0, [{"change": name} for name in names])


def _drop(text: str, spans: list[Span], rng: random.Random) -> str:
    """Without one sentence and the blanks after it (before it, at the end)."""
    gone = rng.randrange(len(spans))
    if gone + 1 < len(spans):
        return text[: spans[gone][0]] + text[spans[gone + 1][0] :]
    return text[: spans[gone - 1][1]] + text[spans[gone][1] :]


def _swap(text: str, spans: list[Span], rng: random.Random) -> str:
    order = list(range(len(spans)))
    one, other = rng.sample(order, 2)
    order[one], order[other] = order[other], order[one]
    return rebuild(text, spans, [text[start:end] for start, end in (spans[index] for index in order)])


def _add(related: list[str], text: str, spans: list[Span], rng: random.Random) -> str:
    """With the next of `related` before or after one of the sentences; the last one serves again when they run out."""
    new = related.pop(0) if len(related) > 1 else related[0]
    places = [0, *(end for _, end in spans)]
    place = rng.choice(places)
    return f"{new} {text}" if place == 0 else f"{text[:place]} {new}{text[place:]}"
