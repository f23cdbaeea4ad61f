"""Counterfactuals: the same row, but for one attribute that should not matter, or for the one that decides its label.

swap:    "He says his card is gone" → "She says her card is gone", the label stays
rewrite: "A dull film with a weak end" (negative) → "A gripping film with a strong end" (positive)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tilth.augment.base import Augmenter, Sample, Variant, VariantsFunction
from tilth.augment.likeness import edit_similarity, judged
from tilth.augment.paraphrase import stripped
from tilth.augment.swaps import Attribute, Swapper, folded, origins
from tilth.data.schema import Row
from tilth.data.transform import Inputs, RowsFunction
from tilth.errors import Problem, StageError
from tilth.generate.base import Answer, Generator, Prompt
from tilth.generate.method import why_not

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


class Counterfactual(Augmenter):
    """Counterfactual rows, by exchanging words or by a language model.

    `swap` mitigates bias (CDA: Lu et al. 2020, arXiv:1807.11714): every word of the lists, and of `pairs`, is
    exchanged for its counterpart, in both directions at once, with its capitals. Attributes are gender (pronouns and
    nouns), names (first names for those of the other gender, as Maudslay et al. 2019, arXiv:1909.00871, so that they
    agree with the pronouns), origin (first names for those of another origin), spelling (British and American) and
    aae (some features of African American English, one way). The lists are English and short, and say what they leave
    out: `augment/data/`. Coreference is not resolved: of a text about one named man and one named woman all is
    exchanged. Numbers, addresses, words of the label and `protect` stay; `meta.edits` lists what was exchanged.

    `rewrite` asks for the fewest changes that give the text another label (Kaushik et al. 2020, arXiv:1909.12434).
    Put a gate `label` after it: a model says that it changed the label more often than it did.
    """

    version: ClassVar[int] = 2  # likeness counts the longest common subsequence of words

    mode: Literal["swap", "rewrite"] = Field("swap", description="Exchange words, or let a model flip the label.")
    attributes: tuple[Attribute, ...] = Field(("gender",), description="swap: what is exchanged.")
    pairs: tuple[tuple[str, str], ...] = Field((), description="swap: words or phrases of your own, both ways.")
    protect: tuple[str, ...] = Field((), description="swap: words or phrases that stay as they are.")
    generator: Generator | None = Field(None, description="rewrite: the model that is asked.")
    labels: tuple[str, ...] = Field((), description="rewrite: labels to flip to; none: those of the data.")
    min_kept: float = Field(0.4, ge=0, le=1, description="rewrite: least edit similarity (of words) to the original.")

    def check(self) -> list[Problem]:
        if self.mode == "swap":
            return [*self._swap_problems(), *self._pair_problems()]
        if self.generator is None:
            return [Problem("generator", "rewrite asks a model, but there is none", "give a generator")]
        return []

    def _swap_problems(self) -> list[Problem]:
        problems = []
        if self.generator is not None:
            problems.append(Problem("generator", "swap asks no model", "leave it out, or set mode=rewrite"))
        if not self.attributes and not self.pairs:
            problems.append(Problem("attributes", "nothing is to be swapped", "name attributes or give pairs"))
        most = len(origins()) - 1 if "origin" in self.attributes else 1
        if self.variants > most:
            what = f"a text can be swapped in {most} way{'s' if most > 1 else ''}, not {self.variants}"
            problems.append(Problem("variants", what, "ask for fewer"))
        return problems

    def _pair_problems(self) -> list[Problem]:
        """A word in two pairs would have two counterparts."""
        words = [folded(word) for pair in self.pairs for word in pair]
        return [
            Problem(f"pairs.{index // 2}", f"{' '.join(word)!r} stands in the pairs twice", "keep one")
            if word
            else Problem(f"pairs.{index // 2}", "has no word on one side")
            for index, word in enumerate(words)
            if not word or word in words[:index]
        ]

    @property
    def in_flight(self) -> int:
        return self.generator.in_flight if self.generator else 1

    @property
    def made_by(self) -> str:
        return self.generator.title if self.generator else self.kind

    def fit(self, rows: Iterable[Row], inputs: Inputs) -> Fitted:
        """The labels of the training originals, where a model is to choose among them."""
        if self.mode == "swap" or self.labels:
            return {}
        import numpy as np

        given = (row for row in rows if row["via"] is None and row["split"] == "train")
        return {"labels": np.asarray(sorted({row["label"] for row in given if row.get("label")}), dtype=str)}

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        if self.generator is None:
            swap = Swapper(self.attributes, self.pairs, self.protect)
            return self.adding(lambda samples: [self._swapped(swap, sample) for sample in samples])
        labels = self.labels or tuple(fitted["labels"].tolist())
        if len(labels) < 2:
            raise StageError(
                f"counterfactual: a label can be flipped only to another one, but there is {len(labels)}; load the "
                "data with row: labelled, or give labels"
            )
        return self.adding(self._rewriting(self.generator, labels, inputs))

    def _swapped(self, swap: Swapper, sample: Sample) -> list[Variant]:
        state = sample.rng.getstate()
        made = []
        for number in range(self.variants):
            sample.rng.setstate(state)  # the same order of origins for each
            made.append(swap(sample.text, sample.label, sample.rng, number))
        metas = [{"edits": [{"old": edit.old, "new": edit.new} for edit in edits]} for _, edits in made]
        variants = judged([text for text, _ in made], sample.text, 1.0, metas)
        wanted = ", ".join([*self.attributes, *(["pairs"] if self.pairs else [])])
        return [
            variant if variant.meta["edits"] else replace(variant, reason=f"unchanged: has no word of {wanted}")
            for variant in variants
        ]

    def _rewriting(self, generator: Generator, labels: Sequence[str], inputs: Inputs) -> VariantsFunction:
        ask = generator.open(inputs)

        def make(samples: list[Sample]) -> list[list[Variant]]:
            targets = [self._targets(sample, labels) for sample in samples]
            asked = [_prompt(sample, label) for sample, found in zip(samples, targets, strict=True) for label in found]
            answers = iter(ask(asked))
            return [
                self._rewritten(sample, [(label, next(answers)) for label in found])
                for sample, found in zip(samples, targets, strict=True)
            ]

        return make

    def _targets(self, sample: Sample, labels: Sequence[str]) -> list[str]:
        """A label for each variant, none the row's own, each once before any comes again."""
        others = [label for label in labels if label != sample.label]
        order = sample.rng.sample(others, len(others)) if sample.label is not None else []
        return [order[number % len(order)] for number in range(self.variants if order else 0)]

    def _rewritten(self, sample: Sample, answers: Sequence[tuple[str, Answer]]) -> list[Variant]:
        if not answers:
            return [Variant("", "label_missing: the row has no label that could be flipped")] * self.variants
        texts = [stripped(answer.first.text, sample.text) for _, answer in answers]
        metas = [{"flipped_from": sample.label, "usage": answer.usage} for _, answer in answers]
        return [
            replace(
                variant,
                reason=why_not(answer) or variant.reason or self._too_far(sample, variant),
                changes={"label": label},
            )
            for variant, (label, answer) in zip(judged(texts, sample.text, 1.0, metas), answers, strict=True)
        ]

    def _too_far(self, sample: Sample, variant: Variant) -> str | None:
        kept = edit_similarity(variant.text, sample.text)
        return f"rewritten: edit similarity {kept:.2f} < {self.min_kept:g}" if kept < self.min_kept else None


def _prompt(sample: Sample, label: str) -> Prompt:
    old, new = (name.replace("_", " ") for name in (str(sample.label), label))
    text = (
        f"The label of the text below is: {old}. Change as few of its words as you can so that its label becomes: "
        f"{new}. Keep everything else as it is. Write the new text alone, without its label.\n\nText: {sample.text}"
    )
    return Prompt(({"role": "user", "content": text},), sample.rng.getrandbits(63))
