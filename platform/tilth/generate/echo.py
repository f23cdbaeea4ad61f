"""A generator without a model: it answers by a rule, for dry runs of a recipe and for tests."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from tilth.data.schema import row_seed
from tilth.data.transform import Inputs
from tilth.generate.base import Answer, Completion, Generate, Generator, Prompt

_WORDS = (5, 40)


class Echo(Generator):
    """Answers with words of the question in another order, or with a value of the shape that was asked for.

    A token is a word. An answer depends on the question and its seed alone, and the n answers to a question differ
    where the shape leaves room. The shares provoke trouble, to see that a method takes it well; the seed decides
    which answers are struck.
    """

    malformed: float = Field(0.0, ge=0, le=1, description="Share of answers without the shape; empty if none is asked.")
    truncated: float = Field(0.0, ge=0, le=1, description="Share of answers that are cut in half.")
    failing: float = Field(0.0, ge=0, le=1, description="Share of questions that fail altogether.")

    def load(self, inputs: Inputs) -> Generate:
        return self._answers

    def _answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> Answer:
        asked = _asked(prompt)
        size = len(asked.split())
        if _rng(prompt, "fail", 0).random() < self.failing:
            return Answer(prompt_tokens=size, failure="echo: this question was to fail")
        made: list[Completion] = []
        for number in range(prompt.n):
            made.append(self._completion(prompt, number, asked, {item.text for item in made}))
        return Answer(tuple(made), size, sum(item.tokens for item in made))

    def _completion(self, prompt: Prompt, number: int, asked: str, taken: set[str]) -> Completion:
        rng = _rng(prompt, "answer", number)
        struck = _rng(prompt, "malformed", number).random() < self.malformed
        words = asked.split() or ["echo"]
        for _ in range(8):
            text = _text(prompt, rng, words)
            if text not in taken:
                break
        else:
            # few words make few texts; a shape may not have n values at all
            text = text if prompt.shape else f"{text} {number}"
        if struck:
            text = f"malformed {text}" if prompt.shape else ""
        cut = _rng(prompt, "truncated", number).random() < self.truncated
        return self._ended(prompt, text, cut)

    def _ended(self, prompt: Prompt, text: str, cut: bool) -> Completion:
        """The text up to a stop or the most tokens, and which of them it was."""
        stops = [at for stop in (*self.sampling.stop, *prompt.stop) if (at := text.find(stop)) >= 0]
        text = text[: min(stops, default=len(text))]
        most = self.sampling.max_tokens if prompt.max_tokens is None else prompt.max_tokens
        words = text.split(" ")
        most = min(most, len(words) // 2) if cut else most
        if len(words) > most:
            return Completion(" ".join(words[:most]), "length", most)
        return Completion(text, "stop", len(words) if text else 0)


def _asked(prompt: Prompt) -> str:
    """What the last turn says, or the text to continue."""
    return prompt.messages if isinstance(prompt.messages, str) else prompt.messages[-1]["content"]


def _rng(prompt: Prompt, purpose: str, number: int) -> random.Random:
    turns: Any = prompt.messages if isinstance(prompt.messages, str) else [dict(turn) for turn in prompt.messages]
    return random.Random(row_seed(prompt.seed, f"{number} {json.dumps(turns, sort_keys=True)}", f"echo {purpose}"))


def _text(prompt: Prompt, rng: random.Random, words: Sequence[str]) -> str:
    if prompt.shape is None:
        return " ".join(rng.choices(words, k=rng.randint(*_WORDS))).capitalize()
    if prompt.shape.choices:
        return rng.choice(prompt.shape.choices)
    from tilth.generate.engines.instances import Instances

    return json.dumps(Instances(json.loads(prompt.shape.schema or "{}"), rng, words).value(), ensure_ascii=False)
