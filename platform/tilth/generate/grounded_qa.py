"""Questions and answers that a passage supports, each with the sentence that does.

The earthworm breathes through its skin.  →  How does an earthworm breathe?  Through its skin.
"""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

from pydantic import Field

from tilth.data.schema import Row, RowType
from tilth.data.transform import Inputs
from tilth.generate.base import Generator, Prompt
from tilth.generate.drafts import Draft, asked, user, yields
from tilth.generate.method import MakeFunction, RowMethod, Yield, opened
from tilth.generate.shape import Shape

_ASK = """\
Read the passage and write {count} {what} that it answers, unlike each other and clear without the passage. \
Give for each the answer, and as evidence the piece of the passage that shows it, copied word for word.
Answer as JSON: {{"pairs": [{{"question": "…", "evidence": "…", "answer": "…"}}]}}
Passage:
{passage}"""
_PAIR = ("question", "evidence", "answer")


class GroundedQa(RowMethod):
    """Questions grounded in documents, with evidence that is checked.

    As in synthetic QA corpora (Alberti et al. 2019, arXiv:1906.05416) an answer is kept only if it can be confirmed,
    here by its quotation: evidence that does not stand in the passage, white space aside, makes a row `unsupported`.
    `meta.evidence` has the quotation and where it stands, as characters of the passage, the end not included.
    """

    takes: ClassVar[tuple[RowType, ...]] = ("text",)
    version: ClassVar[int] = 2  # with a target rows are asked about by how many may come of each

    pairs: int = Field(3, ge=1, le=20, description="Questions for each passage.")
    with_context: bool = Field(False, description="The prompt holds the passage before the question.")
    answer_in_evidence: bool = Field(False, description="The answer too must stand in the evidence, word for word.")
    min_evidence_words: int = Field(3, ge=1, description="Less evidence supports nothing.")

    @property
    def per_ask(self) -> int:
        return self.pairs

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        ask = opened(generator, inputs)

        def make(asks: list[Row]) -> list[Yield]:
            drafts = [Draft(row) for row in asks]
            found = {draft.ask["id"]: answer.value["pairs"] for draft, answer in asked(ask, drafts, self._asking)}
            return yields(asks, [pair for draft in drafts for pair in self._pairs(draft, found)])

        return make

    def _asking(self, draft: Draft) -> Prompt:
        what = "question" if self.pairs == 1 else "questions"
        text = _ASK.format(count=self.pairs, what=what, passage=draft.ask["text"])
        return Prompt(user(text), self.seed_of(draft.ask), shape=_shape(self.pairs))

    def _pairs(self, draft: Draft, found: dict[str, Any]) -> list[Draft]:
        """The rows of a passage; the draft itself, with its reason, where no answer came."""
        if draft.reason is not None:
            return [draft]
        asked_before: set[str] = set()
        rows = [self._row(draft.ask, pair, asked_before) for pair in found[draft.ask["id"]]]
        rows[0].answers = draft.answers
        return rows

    def _row(self, ask: Row, pair: dict[str, str], asked_before: set[str]) -> Draft:
        question, evidence, answer = (pair[name].strip() for name in _PAIR)
        prompt = f"{ask['text']}\n\n{question}" if self.with_context else question
        draft = Draft(ask, {"prompt": prompt, "completion": answer})
        span = find(evidence, ask["text"])
        draft.meta["evidence"] = {"text": evidence} if span is None else _quoted(ask["text"], *span)
        draft.reason = self._unfit(question, evidence, answer, asked_before)
        if draft.reason is None and span is None:
            draft.reason = f"unsupported: the passage does not say {evidence[:100]!r}"
        asked_before.add(question.casefold())
        return draft

    def _unfit(self, question: str, evidence: str, answer: str, asked_before: set[str]) -> str | None:
        if not (question and answer):
            return "empty: no question or no answer"
        if question.casefold() in asked_before:
            return "copied: the same question once more"
        if (count := len(evidence.split())) < self.min_evidence_words:
            return f"unsupported: evidence of {count} words, fewer than {self.min_evidence_words}"
        if self.answer_in_evidence and find(answer, evidence) is None:
            return "unsupported: the answer does not stand in the evidence"
        return None


def find(quotation: str, passage: str) -> tuple[int, int] | None:
    """Where a quotation stands in a passage, whatever the white space between words; None where it does not."""
    words = quotation.split()
    found = re.search(r"\s+".join(map(re.escape, words)), passage) if words else None
    return found.span() if found else None


def _quoted(passage: str, start: int, end: int) -> dict[str, Any]:
    return {"text": passage[start:end], "start": start, "end": end}


def _shape(count: int) -> Shape:
    # evidence comes before the answer, so that the answer is drawn from it
    pair = _closed({name: {"type": "string"} for name in _PAIR})
    pairs = {"type": "array", "items": pair, "minItems": 1, "maxItems": count}
    return Shape(json.dumps(_closed({"pairs": pairs})))


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
