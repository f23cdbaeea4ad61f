"""Rows as questions: what is asked, what is right, and the answered rows that are shown first.

labelled row "Where is it?", card_arrival, two shots in chat form
    →  user: Q1, assistant: A1, user: Q2, assistant: A2, user: "Where is it?…"      references: ["card_arrival"]
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from tilth.config import Component
from tilth.data.schema import Row, value_at
from tilth.errors import StageError
from tilth.generate.base import Message
from tilth.generate.render import asked, joined

#: beside an evaluation's answers: the fields of the `Questions` that they answer
ASKED = "asked.json"
_LABELS = "{{ text }}\n\nWhich of these labels fits: {{ labels | join(', ') }}? Answer with the label alone."
_QUESTION = "{{ context }}\n\nQuestion: {{ question }}\nAnswer with words of the text, as few as possible.\nAnswer:"


class Shots(Component):
    """Answered rows that a model is shown before each question, the same ones for all (Brown et al. 2020)."""

    count: int = Field(ge=1, le=256, description="How many.")
    split: Literal["train", "validation", "test"] = Field("train", description="The split that they come from.")
    seed: int = Field(0, ge=0, description="Seed by which they are drawn.")

    def draw(self, rows: Iterable[Row]) -> list[Row]:
        """The shots; StageError where the split has too few rows."""
        own = (row for row in rows if row["split"] == self.split)
        drawn = heapq.nsmallest(self.count, own, key=self._rank)
        if len(drawn) < self.count:
            raise StageError(f"shots: split {self.split!r} has {len(drawn)} rows, fewer than {self.count}")
        return drawn

    def _rank(self, row: Row) -> bytes:
        return hashlib.blake2b(f"{self.seed} {row['id']}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


@dataclass(frozen=True)
class Questions:
    """Turns rows into questions. `template` is Jinja, `reference` a dotted path; None: as the row's type calls for."""

    template: str | None = None
    reference: str | None = None
    labels: tuple[str, ...] = ()
    shots: Sequence[Row] = ()
    form: Literal["chat", "text"] = "chat"

    def conversation(self, row: Row) -> tuple[Message, ...]:
        """All that a model saw: the turns, or the one text that it continued."""
        return self.turns(row) if self.form == "chat" else ({"role": "user", "content": self.text(row)},)

    def turns(self, row: Row) -> tuple[Message, ...]:
        """A conversation whose last turn is the question, the shots as turns before it."""
        shown = [
            turn
            for shot in self.shots
            for turn in (*self._asked(shot), {"role": "assistant", "content": self._answer(shot)})
        ]
        return (*shown, *self._asked(row))

    def text(self, row: Row) -> str:
        """One text to be continued: shots with their answers, a blank line apart, and the question."""
        shown = [joined(self.question(shot), self._answer(shot)) for shot in self.shots]
        return "\n\n".join([*shown, self.question(row)])

    def _asked(self, row: Row) -> tuple[Message, ...]:
        if self.template is None and row.get("messages"):
            return tuple({"role": turn["role"], "content": turn["content"]} for turn in _open(row))
        return ({"role": "user", "content": self.question(row)},)

    def question(self, row: Row) -> str:
        """What is asked about a row, as a text."""
        return asked(self.template or _default(row), row, self.labels)

    def _answer(self, row: Row) -> str:
        found = self.references(row)
        if not found:
            raise StageError(f"row {row['id']} cannot be shown as an example: it has no reference")
        return found[0]

    def references(self, row: Row) -> list[str]:
        """What is right: at the path that was given, else by the row's type; none where nothing is known."""
        if self.reference is not None:
            return _texts(value_at(row, self.reference))
        if row.get("messages"):
            last = row["messages"][-1]
            return [last["content"]] if last["role"] == "assistant" else []
        if row.get("answers") is not None:
            return list(dict.fromkeys(item["text"] for item in row["answers"])) or [""]
        return _texts(row.get("completion") or row.get("label") or row.get("chosen"))


def _default(row: Row) -> str:
    if row.get("label") is not None:
        return _LABELS
    if row.get("question") is not None:
        return _QUESTION
    if row.get("messages"):
        return "{% for turn in messages[:-1] %}{{ turn.content }}\n{% endfor %}"
    for name in ("prompt", "text"):
        if row.get(name) is not None:
            return "{{ " + name + " }}"
    raise StageError(f"row {row['id']}: nothing of it is a question; set the task's prompt")


def _open(row: Row) -> list[dict[str, str]]:
    """A conversation up to the assistant's last turn."""
    turns: list[dict[str, str]] = row["messages"]
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
