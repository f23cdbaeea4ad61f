"""Answers that count, as plain records: what figures and exports are made of, from a database or an exported file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tilth.annotate.items import RETIRED
from tilth.annotate.tables import Answer, Assignment, Person, Shown
from tilth.errors import StorageError


@dataclass(frozen=True)
class Judgement:
    """One person's answer to one item.

    `value` holds `preferred` (a model, or "tie") with `choice` (A, B or tie, as it was shown), or `scores` by
    criterion.
    """

    item: str
    kind: str
    root: str
    split: str
    prompt: str
    answers: Mapping[str, str]
    expected: Any
    person: int
    value: Mapping[str, Any]
    seconds: float
    at: float

    @property
    def pairwise(self) -> bool:
        return "preferred" in self.value

    @property
    def passed(self) -> bool | None:
        """Whether the answer to a known item is the expected one; None where nothing is expected, or was by mistake."""
        if self.expected is None or self.kind == RETIRED:
            return None
        if self.pairwise:
            return bool(self.value["preferred"] == self.expected)
        scores = self.value["scores"]
        return all(low <= scores.get(name, low) <= high for name, (low, high) in self.expected.items())

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def judgements(session: Session) -> list[Judgement]:
    """Every answer that counts, of people who are not left out, in the order in which they were given."""
    query = select(Answer, Assignment, Shown).join(Assignment, Answer.assignment_id == Assignment.id)
    query = query.join(Shown, Shown.id == Assignment.item_id).join(Person, Person.id == Assignment.person_id)
    query = query.where(Answer.withdrawn.is_(None), ~Person.left_out).order_by(Answer.id)
    return [
        Judgement(
            item.id, item.kind, item.root, item.split, item.prompt, dict(item.answers), item.expected,
            given.person_id, answer.value, round(answer.seconds, 3), round(answer.at, 3),
        )
        for answer, given, item in session.execute(query)
    ]  # fmt: skip


def from_place(place: str) -> list[Judgement]:
    """The judgements of an exported file (.jsonl) or a database; StorageError where there is none."""
    if place.endswith(".jsonl"):
        return _from_file(Path(place))
    if "://" not in place and not Path(place).is_file():
        raise StorageError(f"{place}: there are no answers; collect them with `tilth annotate RUN`")
    from tilth.annotate.book import Book

    book = Book(place)
    try:
        with book.reading() as session:
            return judgements(session)
    finally:
        book.close()


def _from_file(path: Path) -> list[Judgement]:
    try:
        lines: Sequence[str] = path.read_text(encoding="utf-8").split("\n")
        return [Judgement(**json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"{path} holds no exported answers: {error}; export `answers` from the campaign") from error
