"""Paraphrase: a language model says a text again in other words.

"My card still has not arrived" → "The card that I ordered is not here yet." (formal), "Where is my card?" (question)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from tilth.augment.base import Augmenter, Sample, Variant, VariantsFunction
from tilth.augment.likeness import judged
from tilth.data.transform import Inputs
from tilth.errors import Problem
from tilth.generate.base import Answer, Generator, Prompt, total_usage
from tilth.generate.method import why_not

STYLES = {
    "plain": "in other words",
    "formal": "in formal language",
    "casual": "in casual language, as one would write to a friend",
    "shorter": "in fewer words",
    "longer": "in more words, without adding anything to what it says",
    "simple": "in simple words that a child would understand",
    "question": "as a question",
    "statement": "as a statement, not as a question",
    "polite": "more politely",
    "direct": "more directly",
}
# a first line such as "Sure! Here is a more formal version of the text:"; it must say what it announces
_SURE = r"(?:(?:sure|certainly|of course|absolutely|okay|ok)\b[!.,:]?\s+)?"
_HERE = r"(?:here(?:['’]s|\s+is|\s+are)|the following is|below is|this is)\b[^:\n]{0,120}?"
_KEY = r"\b(?:paraphras|rephras|reword|rewr[io]t|version|text|sentence|question|statement|phrase|words)\w*[^:\n]{0,60}"
_BARE = r"(?:paraphrased?|rephrased|reworded|rewritten|new|text)(?:\s(?:text|version|sentence|question|statement))?"
_PREAMBLE = re.compile(rf"\A\s*{_SURE}(?:{_HERE}{_KEY}|\**{_BARE}\**):\**\s*(?=\S)", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}
_PARAGRAPH = re.compile(r"\n\s*\n")


class Paraphrase(Augmenter):
    """Paraphrases by a language model, as AugGPT (Dai et al. 2023, arXiv:2302.13007) makes them of labelled texts.

    The styles of a row's variants are drawn by its own random numbers, each style once before any comes again. What
    a model puts around the text, quotes or a line such as "Here is a paraphrase:", is taken off; the label is kept.
    An answer that was cut off, that is as good as the original or that repeats another variant is dropped with its
    reason. Whether the meaning is kept is for gates to say: put `similarity` after it, and `label` where rows have
    labels. Each variant's `meta` holds `style`, and `chrf` and `edit_similarity` to the original.
    """

    version: ClassVar[int] = 2  # likeness counts the longest common subsequence of words

    generator: Generator = Field(description="The model that is asked.")
    styles: tuple[str, ...] = Field(
        ("plain", "formal", "casual", "shorter", "question"),
        min_length=1,
        description=f"What to ask for: {', '.join(STYLES)}; or words of your own, such as `like a pirate`.",
    )
    near_identical: float = Field(
        0.95, ge=0, le=1, description="Reject a paraphrase with this edit similarity (of words) or more."
    )

    def check(self) -> list[Problem]:
        problems = [
            Problem(f"styles.{index}", f"no style is called {style!r}", f"use {', '.join(STYLES)}, or several words")
            for index, style in enumerate(self.styles)
            if style not in STYLES and " " not in style.strip()
        ]
        if self.variants > len(self.styles) and self.generator.sampling.temperature == 0:
            what = f"{self.variants} of {len(self.styles)} styles would be the same text twice at temperature 0"
            problems.append(Problem("variants", what, "ask for fewer, add styles, or raise sampling.temperature"))
        return problems

    @property
    def in_flight(self) -> int:
        return self.generator.in_flight

    @property
    def made_by(self) -> str:
        return self.generator.title

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        ask = self.generator.open(inputs)

        def make(samples: list[Sample]) -> list[list[Variant]]:
            asked = [[self._prompt(sample, *item) for item in self._drawn(sample)] for sample in samples]
            answers = iter(ask([prompt for _, prompt in (pair for pairs in asked for pair in pairs)]))
            return [
                self._variants(sample, [(style, prompt.n, next(answers)) for style, prompt in pairs])
                for sample, pairs in zip(samples, asked, strict=True)
            ]

        return make

    def _drawn(self, sample: Sample) -> list[tuple[str, int]]:
        """The styles of a row's variants, each with how many it is for."""
        rounds, rest = divmod(self.variants, len(self.styles))
        order = sample.rng.sample(self.styles, len(self.styles))
        return [(style, n) for index, style in enumerate(order) if (n := rounds + (index < rest))]

    def _prompt(self, sample: Sample, style: str, n: int) -> tuple[str, Prompt]:
        text = (
            f"Rewrite the text below {STYLES.get(style, style)}. It must mean the same and keep all names and "
            "numbers. Do not answer it and do not explain; write the new text alone.\n\n"
            f"Text: {sample.text}"
        )
        return style, Prompt(({"role": "user", "content": text},), sample.rng.getrandbits(63), n)

    def _variants(self, sample: Sample, answers: Sequence[tuple[str, int, Answer]]) -> list[Variant]:
        """The completions judged beside each other; the first variant carries the tokens of all."""
        found = [(style, *item) for style, n, answer in answers for item in _completions(n, answer)]
        texts = [stripped(text, sample.text) for _, text, _ in found]
        made = judged(texts, sample.text, self.near_identical, [{"style": style} for style, _, _ in found])
        made[0].meta["usage"] = total_usage([answer for _, _, answer in answers])
        return [
            replace(variant, reason=why or variant.reason or _more(variant.text, sample.text))
            for variant, (_, _, why) in zip(made, found, strict=True)
        ]


def _completions(n: int, answer: Answer) -> Iterator[tuple[str, str | None]]:
    """The n texts of an answer, each with the reason why it is none; one that is missing is empty."""
    for number in range(n):
        alone = replace(answer, completions=answer.completions[number : number + 1])
        yield alone.first.text, why_not(alone)


def stripped(text: str, original: str) -> str:
    """`text` without the line that announces it and without quotes around it, where `original` has none such."""
    text = text.strip()
    if not _PREAMBLE.match(original):
        text = _PREAMBLE.sub("", text, count=1)
    mark, inner = text[:1], text[1:-1]
    if len(text) < 3 or _QUOTES.get(mark) != text[-1] or original.strip().startswith(mark):
        return text
    # "Yes" or "no" are two quotes, and an apostrophe is none
    another = re.search(rf"(?<!\w)[{mark}{text[-1]}]|[{mark}{text[-1]}](?!\w)", inner)
    return text if another else inner.strip()


def _more(text: str, original: str) -> str | None:
    """A reason for an answer that goes on after the paraphrase: with another one, or with what it did."""
    count, own = len(_PARAGRAPH.split(text.strip())), len(_PARAGRAPH.split(original.strip()))
    return f"more: {count} paragraphs where the original has {own}" if count > own else None
