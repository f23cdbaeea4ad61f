"""Rows in the making, for methods that ask several questions about each.

drafts = [Draft(ask) for ask in asks]
for draft, answer in asked(generate, drafts, question):     # one call for all of them
    draft.payload["prompt"] = answer.text
for draft, answer in asked(generate, drafts, next_question):    # about those alone that have no reason yet
    …
return yields(asks, drafts)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilth.data.schema import Row
from tilth.generate.base import Answer, Completion, Generate, Message, Prompt
from tilth.generate.method import Made, Yield, why_not


@dataclass
class Draft:
    """A row in the making. With a reason it is out, and nothing more is asked about it."""

    ask: Row
    payload: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    answers: list[Answer] = field(default_factory=list)

    @property
    def made(self) -> Made:
        return Made(self.payload, self.reason, self.meta)


def asked(
    generate: Generate, drafts: Sequence[Draft], question: Callable[[Draft], Prompt]
) -> list[tuple[Draft, Completion]]:
    """Ask about each draft that has no reason yet; those whose answer is whole and says something, with it.

    The others get their reason, what `why_not` says or `empty`, and what there is of the answer in `meta.said`.
    """
    open_ones = [draft for draft in drafts if draft.reason is None]
    answers = generate([question(draft) for draft in open_ones])
    for draft, answer in zip(open_ones, answers, strict=True):
        draft.answers.append(answer)
        draft.reason = why_not(answer) or (None if answer.first.text.strip() else "empty: the answer says nothing")
        if draft.reason is not None and answer.first.text:
            draft.meta["said"] = answer.first.text
    return [(d, answer.first) for d, answer in zip(open_ones, answers, strict=True) if d.reason is None]


def yields(asks: Sequence[Row], drafts: Sequence[Draft]) -> list[Yield]:
    """For each ask all of its drafts, in order, and what they cost."""
    of_ask: dict[str, list[Draft]] = defaultdict(list)
    for draft in drafts:
        of_ask[draft.ask["id"]].append(draft)
    return [
        Yield(
            [draft.made for draft in of_ask[ask["id"]]],
            [answer for draft in of_ask[ask["id"]] for answer in draft.answers],
        )
        for ask in asks
    ]


def user(text: str) -> tuple[Message, ...]:
    """A conversation that begins with this."""
    return ({"role": "user", "content": text},)


def instruction_of(row: Row) -> str:
    """What a seed asks for: the prompt of a completion, or a text."""
    return str(row.get("prompt") or row.get("text") or "").strip()


def bare(text: str) -> str:
    """A text without the spaces and the pair of quotation marks around it, which models like to add."""
    text = text.strip()
    if len(text) > 1 and text[0] + text[-1] in ('""', "“”", "''") and text[0] not in text[1:-1]:
        return text[1:-1].strip()
    return text
