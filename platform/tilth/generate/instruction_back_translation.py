"""Instruction back-translation: texts that people wrote become answers, once a model found what was asked.

Rinse the rice until the water runs clear, then …  →  How do I cook rice that does not stick?  ⟵ as its answer
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tilth.data.schema import Row, RowType
from tilth.data.transform import Inputs
from tilth.generate.base import Generator, Prompt
from tilth.generate.drafts import Draft, asked, bare, user, yields
from tilth.generate.method import MakeFunction, RowMethod, Yield, opened
from tilth.generate.shape import Shape

_ASK = """\
Below is a text. It is the answer that an AI assistant gave to a user. Write what the user had asked: one \
instruction or question to which the whole text is a good answer. Write only that.
Text:
{text}
What the user had asked:"""
# the five points of the paper's self-curation prompt, in short
_SCORE = """\
Below is an instruction from a user and a candidate answer. Evaluate whether or not the answer is a good example of \
how an AI assistant should respond to the instruction. Assign a score using the following 5-point scale:
1: The answer is incomplete, vague, off-topic, controversial, or not exactly what the user asked for.
2: It addresses most of what the user asked, but not directly, or only in general.
3: It is helpful but not written by an AI assistant: it addresses all basic asks, from another's perspective.
4: It is written from an AI assistant's perspective, focused on the instruction, complete and clear, with minor room \
for improvement.
5: It is a perfect answer from an AI assistant: focused, intentional, of high quality, without irrelevant sentences.
Instruction: {instruction}
Answer: {text}
Answer with the score alone. Score:"""
_POINTS = Shape(choices=("1", "2", "3", "4", "5"))


class InstructionBackTranslation(RowMethod):
    """Instruction back-translation (Humpback; Li et al. 2024, arXiv:2308.06259).

    Self-augmentation: for each text the model writes the instruction that it answers; the generator may be a model
    that was trained for that, as an "@stage". Self-curation: the model scores the pair from 1 to 5, and what is
    below `min_score` is dropped (`score`). The second iteration of the paper is a second stage whose `judge` is the
    model that was trained on what the first one kept.
    """

    takes: ClassVar[tuple[RowType, ...]] = ("text",)
    version: ClassVar[int] = 2  # with a target rows are asked about by how many may come of each

    instructions: int = Field(1, ge=1, le=16, description="Instructions tried for each text.")
    min_score: int = Field(4, ge=1, le=5, description="Points of 5 that a pair must have; 1: nothing is scored.")
    judge: Generator | None = Field(None, description="The model that scores; none: the one that writes.")
    max_words: int = Field(1000, ge=1, description="Longer texts are dropped without a question.")

    @property
    def per_ask(self) -> int:
        return self.instructions

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        ask = opened(generator, inputs)
        judge = ask if self.judge is None else opened(self.judge, inputs)

        def make(asks: list[Row]) -> list[Yield]:
            drafts = [self._draft(row, number) for row in asks for number in range(self.instructions)]
            for draft, answer in asked(ask, drafts, self._asking):
                draft.payload["prompt"] = bare(answer.text)
                draft.reason = _unfit(draft)
            if self.min_score > 1:
                for draft, answer in asked(judge, drafts, _scoring):
                    draft.meta["score"] = int(answer.value)
                    draft.reason = self._too_low(draft)
            return yields(asks, drafts)

        return make

    def _draft(self, row: Row, number: int) -> Draft:
        words = len(row["text"].split())
        reason = (
            f"length: the text has {words:,} words, more than {self.max_words:,}" if words > self.max_words else None
        )
        return Draft(row, {"completion": row["text"]}, {"number": number}, reason)

    def _asking(self, draft: Draft) -> Prompt:
        text = _ASK.format(text=draft.ask["text"])
        return Prompt(user(text), self.seed_of(draft.ask, str(draft.meta["number"])))

    def _too_low(self, draft: Draft) -> str | None:
        score = draft.meta["score"]
        return f"score: {score} of 5, below {self.min_score}" if score < self.min_score else None


def _unfit(draft: Draft) -> str | None:
    """That the instruction is the text again, or a piece of it."""
    asks, text = (" ".join(part.split()).casefold() for part in (draft.payload["prompt"], draft.ask["text"]))
    return "copied: the instruction repeats the text" if asks in text or text in asks else None


def _scoring(draft: Draft) -> Prompt:
    text = _SCORE.format(instruction=draft.payload["prompt"], text=draft.ask["text"])
    return Prompt(user(text), shape=_POINTS, temperature=0)
