"""Rows as TRL takes them; conversations as tokens, and which of them a model learns to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tilth.data.conditioning import label_prefix
from tilth.errors import StageError
from tilth.train.masking import IGNORED

Messages = Sequence[Mapping[str, str]]


def as_trl(row_type: str, learns: str, tokenizer: Any) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Rows as TRL knows them: a text, a prompt with its completion, or tokens with their labels."""
    if row_type == "labelled":
        return lambda row: {"text": label_prefix(row["label"]) + row["text"]}
    if row_type != "chat":
        return lambda row: {name: row[name] for name in ("text", "prompt", "completion") if name in row}
    if learns == "assistant":
        return lambda row: assistant_turns(tokenizer, row["messages"])
    if learns == "all":
        return lambda row: {"messages": row["messages"]}
    return lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def assistant_turns(tokenizer: Any, messages: Messages) -> dict[str, list[int]]:
    """input_ids of a whole conversation, and labels that are IGNORED outside the assistant's turns.

    A turn is what the chat template adds to the conversation before it, its end-of-turn token included. StageError
    where the template renders a conversation's beginning differently from the beginning of the whole.
    """
    whole = chat_ids(tokenizer, messages)
    labels = [IGNORED] * len(whole)
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or not number:
            continue
        start = len(_beginning(tokenizer, messages[:number], whole, asks=True))
        end = len(_beginning(tokenizer, messages[: number + 1], whole, asks=False))
        labels[start:end] = whole[start:end]
    return {"input_ids": whole, "labels": labels}


def _beginning(tokenizer: Any, messages: Messages, whole: list[int], asks: bool) -> list[int]:
    found = chat_ids(tokenizer, messages, asks)
    if whole[: len(found)] != found:
        raise StageError(
            f"sft: the chat template renders the first {len(messages)} messages of a conversation differently from "
            "the whole, so that the assistant's turns cannot be told apart; use loss_on: completion"
        )
    return found


def chat_ids(tokenizer: Any, messages: Messages, asks: bool = False) -> list[int]:
    """The tokens of a conversation by its chat template; with `asks`, of one whose next turn is the assistant's."""
    found = tokenizer.apply_chat_template(list(messages), add_generation_prompt=asks, return_dict=True)
    return list(found["input_ids"])
