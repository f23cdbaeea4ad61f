"""Asking with care: the system message is put in, and answers without the shape asked for are asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tilth.data.schema import row_seed
from tilth.generate.base import Answer, Completion, Generate, Prompt
from tilth.generate.shape import Shape, ShapeError

if TYPE_CHECKING:
    from tilth.generate.base import Generator


class Asking:
    """Implements `Generate` on top of an engine's own."""

    def __init__(self, config: Generator, engine: Generate) -> None:
        self.config, self.engine = config, engine

    def __call__(self, prompts: Sequence[Prompt]) -> list[Answer]:
        prompts = [self._with_system(prompt) for prompt in prompts]
        answers = [_read(prompt, answer) for prompt, answer in zip(prompts, self._ask(prompts), strict=True)]
        for attempt in range(1, self.config.retries + 1):
            again = [index for index, answer in enumerate(answers) if _lacks_shape(prompts[index], answer)]
            if not again:
                break
            new = self._ask([self._anew(prompts[index], answers[index], attempt) for index in again])
            for index, answer in zip(again, new, strict=True):
                answers[index] = _mended(answers[index], _read(prompts[index], answer))
        return answers

    def _ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        answers = self.engine(prompts) if prompts else []
        if len(answers) != len(prompts):
            raise RuntimeError(f"{self.config.kind} gave {len(answers)} answers to {len(prompts)} prompts")
        return answers

    def _anew(self, prompt: Prompt, answer: Answer, attempt: int) -> Prompt:
        """The same question, for as many completions as lack the shape, with other random numbers.

        The likeliest answer would be the same again: a greedy question is asked a little warmer.
        """
        lacking = sum(not item.whole for item in answer.completions)
        own = self.config.sampling.temperature if prompt.temperature is None else prompt.temperature
        return replace(prompt, seed=row_seed(prompt.seed, str(attempt), "retry"), n=lacking, temperature=own or 0.5)

    def _with_system(self, prompt: Prompt) -> Prompt:
        turns = prompt.messages
        if not self.config.system or isinstance(turns, str) or any(turn["role"] == "system" for turn in turns):
            return prompt
        return replace(prompt, messages=({"role": "system", "content": self.config.system}, *turns))


def _read(prompt: Prompt, answer: Answer) -> Answer:
    if prompt.shape is None:
        return answer
    shape = prompt.shape
    return replace(answer, completions=tuple(_shaped(item, shape) for item in answer.completions))


def _shaped(item: Completion, shape: Shape) -> Completion:
    """A truncated text stays truncated, even where what there is of it parses."""
    if item.finish != "stop":
        return item
    try:
        return replace(item, value=shape.read(item.text))
    except ShapeError:
        return replace(item, finish="malformed")


def _lacks_shape(prompt: Prompt, answer: Answer) -> bool:
    return prompt.shape is not None and any(item.finish in ("malformed", "length") for item in answer.completions)


def _mended(old: Answer, new: Answer) -> Answer:
    """The old answer with its faulty completions replaced, in order, by the new ones; the tokens of both."""
    fresh = iter(new.completions)
    items = tuple(item if item.whole else next(fresh, item) for item in old.completions)
    return Answer(
        items,
        old.prompt_tokens + new.prompt_tokens,
        old.completion_tokens + new.completion_tokens,
        old.failure if items else new.failure,
    )
