"""Prompts as a policy sees them, and which of them a step asks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tilth.data.schema import Row, row_seed
from tilth.generate.judges import transcript
from tilth.train.ppo.rollouts import Ask


@dataclass(frozen=True)
class Prompt:
    """A row with its prompt as text, without a chat template, and as tokens, with it."""

    row: Row
    text: str
    tokens: tuple[int, ...]


def prompts_of(rows: Iterable[Row], tokenizer: Any, room: int) -> tuple[list[Prompt], int]:
    """The prompts of completion, preference, text and chat rows that have at most `room` tokens; how many have more.

    Of a conversation everything before its last answer is asked, by the chat template.
    """
    found = [_prompt(row, tokenizer) for row in rows]
    fitting = [prompt for prompt in found if 0 < len(prompt.tokens) <= room]
    return fitting, len(found) - len(fitting)


def _prompt(row: Row, tokenizer: Any) -> Prompt:
    if "messages" not in row:
        text = str(row["prompt"] if "prompt" in row else row["text"])
        return Prompt(row, text, tuple(tokenizer(text)["input_ids"]))
    turns = list(row["messages"])
    asked = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    asking = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    return Prompt(row, transcript(asked), tuple(tokenizer(asking, add_special_tokens=False)["input_ids"]))


def taken(step: int, size: int, count: int, seed: int) -> list[int]:
    """Which of `count` prompts step number `step` (from 0) asks: each once in every pass, passes in random order."""
    places = range(step * size, (step + 1) * size)
    return [_order(count, seed, place // count)[place % count] for place in places]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(random.Random(f"{seed}/{epoch}").sample(range(count), count))


def asks(prompts: Sequence[Prompt], samples: int, seed: int, purpose: str) -> list[Ask]:
    """So many asks of each prompt, side by side, each with a seed of its own, also where a prompt stands twice."""
    return [
        Ask(prompt.row["id"], prompt.tokens, row_seed(seed, f"{place}.{number}", purpose))
        for place, prompt in enumerate(prompts)
        for number in range(samples)
    ]
