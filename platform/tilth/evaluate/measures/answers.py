"""Answers that are right or wrong: exact match, SQuAD's two figures, and the number at the end of a solution."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from tilth.data.schema import Row
from tilth.evaluate.measures.base import Metric, Statistics, compared

#: the last number of a text, as lm-evaluation-harness extracts it for GSM8K
_NUMBER = r"-?[$0-9.,]{2,}|-?[0-9]+"


class ExactMatch(Metric):
    """Share of answers that are one of the references, spaces around them aside."""

    reads: ClassVar[tuple[str, ...]] = ("answers",)
    best: ClassVar[float | None] = 1.0

    ignore_case: bool = Field(False, description="Compare in small letters.")

    def figures(self, rows: Sequence[Row]) -> Statistics:
        from tilth.data.bootstrap import mean

        pairs = compared(rows, self.kind)
        return {"exact_match": mean([self._plain(said) in map(self._plain, right) for said, right in pairs])}

    def _plain(self, text: str) -> str:
        return text.strip().casefold() if self.ignore_case else text.strip()


class Squad(Metric):
    """F1 over words and exact match of the official SQuAD script (Rajpurkar et al. 2016), 0 to 1.

    Case, punctuation and articles do not count; of several right answers the best one does. A question without an
    answer is answered by an empty text (Rajpurkar et al. 2018).
    """

    best: ClassVar[float | None] = 1.0

    def figures(self, rows: Sequence[Row]) -> Statistics:
        from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

        from tilth.data.bootstrap import mean

        pairs = [(said_of(row), _right(row)) for row in rows]
        f1 = [max(compute_f1(right, said) for right in answers) for said, answers in pairs]
        exact = [max(compute_exact(right, said) for right in answers) for said, answers in pairs]
        return {"squad_f1": mean(f1), "squad_exact": mean(exact)}


def said_of(row: Row) -> str:
    """What a model that finds spans, or one that writes, answered."""
    meta = row["meta"]
    return str(meta["prediction"] if "prediction" in meta else meta["answers"][0])


def _right(row: Row) -> list[str]:
    """The answers that count as right; an empty one where there is none."""
    given = row["meta"].get("references")
    found = given if given is not None else [item["text"] for item in row["answers"] or ()]
    return list(found) or [""]


class ExactAnswer(Metric):
    """Share of answers whose final number is that of the reference, as GSM8K is scored (Cobbe et al. 2021).

    Of a text the number after its last `####` counts, else its last number; `answer: first` takes the first one that
    `pattern` finds instead. Currency signs, thousands separators and a full stop are taken off, and 18.0 is 18.
    """

    reads: ClassVar[tuple[str, ...]] = ("answers",)
    best: ClassVar[float | None] = 1.0

    pattern: str = Field(
        _NUMBER, description="Regular expression of an answer; its first group that holds something, if any."
    )
    answer: Literal["first", "last"] = Field("last", description="Which of several matches counts.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"must be a regular expression: {error}") from error
        return pattern

    def figures(self, rows: Sequence[Row]) -> Statistics:
        from tilth.data.bootstrap import mean

        return {"exact_answer": mean([self._right(said, known) for said, known in compared(rows, self.kind)])}

    def _right(self, said: str, references: list[str]) -> bool:
        found = self.extract(said)
        return found is not None and found in map(self.extract, references)

    def extract(self, text: str) -> Decimal | str | None:
        """The answer in a text, as a number where it is one; None where there is none."""
        matches = list(re.finditer(self.pattern, text.rpartition("####")[2]))
        if not matches:
            return None
        found = matches[0 if self.answer == "first" else -1]
        return number(next(filter(None, found.groups()), found.group()))


def number(text: str) -> Decimal | str:
    """A text as the number that it writes, else itself without spaces around it."""
    plain = text.strip().replace(",", "").replace("$", "").rstrip(".")
    try:
        return Decimal(plain)
    except InvalidOperation:
        return plain
