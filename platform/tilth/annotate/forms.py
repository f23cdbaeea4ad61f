"""What people are asked of an item: marks on criteria, or which of two answers is better. Light."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from tilth.config import Component
from tilth.errors import Problem

#: characters of a comment
COMMENT = 2000
TIE = "tie"
#: what the two answers are called on the page, in the order in which they are shown
SIDES = ("A", "B")
#: what a page sends beside the marks
FIELDS = ("csrf", "assignment", "key", "comment")
_NAME = re.compile(r"^[a-z][a-z0-9_]*$")


class Unanswered(ValueError):  # noqa: N818 - says to the person at the page what is missing
    """What was sent is no answer to the form; the text is shown to whoever sent it."""


class Form(Component, family="form"):
    """One question about one item. `answers` is how many texts an item shows."""

    answers: ClassVar[int]

    comments: bool = Field(True, description="Offer a field for remarks.")

    def read(self, fields: Mapping[str, Sequence[str]], shown: Sequence[str]) -> dict[str, Any]:
        """The answer that the posted `fields` hold; `shown` names the models in the order shown. Unanswered if none."""
        raise TypeError(f"{type(self).__name__} must define read()")

    def fields(self, value: Mapping[str, Any]) -> dict[str, list[str]]:
        """The fields of the form as this answer filled them."""
        raise TypeError(f"{type(self).__name__} must define fields()")

    def known(self, expected: Any, models: Sequence[str]) -> str | None:
        """What is wrong with the expected answer of a known-answer item; None where nothing is."""
        raise TypeError(f"{type(self).__name__} must define known()")

    def attention(self, number: int) -> tuple[str, dict[str, str], Any]:
        """Prompt, texts by model and expected answer of an attention check."""
        raise TypeError(f"{type(self).__name__} must define attention()")

    def _comment(self, fields: Mapping[str, Sequence[str]]) -> dict[str, str]:
        text = "".join(fields.get("comment", ()))[:COMMENT].strip() if self.comments else ""
        return {"comment": text} if text else {}


class Criterion(Component):
    """One thing that is marked."""

    name: str = Field(pattern=_NAME.pattern, description="Its name in exports and figures.")
    question: str = Field(min_length=1, max_length=500, description="What the person is asked.")
    scale: Literal["slider", "likert"] = Field("slider", description="slider: 0 to 100; likert: a few named steps.")
    points: int = Field(5, ge=2, le=10, description="Steps of a Likert scale.")
    low: str = Field("not at all", max_length=60, description="What the lowest mark means.")
    high: str = Field("perfectly", max_length=60, description="What the highest mark means.")

    @property
    def span(self) -> tuple[int, int]:
        """The lowest and the highest mark."""
        return (0, 100) if self.scale == "slider" else (1, self.points)


_CRITERIA = (
    Criterion(name="fluency", question="Is the text well-formed and natural?"),
    Criterion(name="coherence", question="Do its parts hang together?"),
    Criterion(name="relevance", question="Does it answer what was asked?"),
)


class Direct(Form):
    """Direct assessment: a mark for each criterion (0 to 100 as in WMT: Graham et al. 2013, or a Likert scale)."""

    answers: ClassVar[int] = 1

    criteria: tuple[Criterion, ...] = Field(_CRITERIA, min_length=1, max_length=10, description="What is marked.")

    def check(self) -> list[Problem]:
        names = [criterion.name for criterion in self.criteria]
        twice = sorted({name for name in names if names.count(name) > 1})
        found = [Problem("criteria", f"{name!r} stands twice", "give each its own name") for name in twice]
        for name in sorted({*FIELDS} & {*names}):
            what = f"{name!r} is the name of a field of the page itself"
            found.append(Problem("criteria", what, "call the criterion otherwise"))
        return found

    def read(self, fields: Mapping[str, Sequence[str]], shown: Sequence[str]) -> dict[str, Any]:
        scores = {}
        for criterion in self.criteria:
            low, high = criterion.span
            given = "".join(fields.get(criterion.name, ())).strip()
            if not given:
                raise Unanswered(f"Please give a mark for {criterion.name}.")
            if not given.isascii() or not given.isdigit() or len(given) > 9 or not low <= int(given) <= high:
                raise Unanswered(f"The mark for {criterion.name} must be a whole number from {low} to {high}.")
            scores[criterion.name] = int(given)
        return {"scores": scores, **self._comment(fields)}

    def fields(self, value: Mapping[str, Any]) -> dict[str, list[str]]:
        marks = {name: [str(mark)] for name, mark in value["scores"].items()}
        return marks | {"comment": [value.get("comment", "")]}

    def known(self, expected: Any, models: Sequence[str]) -> str | None:
        names = {criterion.name for criterion in self.criteria}
        sound = isinstance(expected, Mapping) and set(expected) <= names and all(map(_is_span, expected.values()))
        return None if sound else f"must give spans [low, high] for some of {', '.join(sorted(names))}"

    def attention(self, number: int) -> tuple[str, dict[str, str], Any]:
        highest = bool(number % 2)
        text = (
            f"This is a check of attention. Please give the **{'highest' if highest else 'lowest'}** mark everywhere."
        )
        spans = {item.name: [item.span[highest]] * 2 for item in self.criteria}
        return "", {"check": text}, spans


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, int | float) for item in value)


class Pairwise(Form):
    """Pairwise comparison: which of two answers is better, A, B or neither; whose they are is not shown."""

    answers: ClassVar[int] = 2

    question: str = Field("Which answer is better?", min_length=1, max_length=500, description="What is asked.")
    ties: bool = Field(True, description="Both may be equally good.")
    reasons: tuple[str, ...] = Field(
        ("more correct", "more helpful", "better written", "safer"), max_length=12, description="Reasons to tick."
    )

    def read(self, fields: Mapping[str, Sequence[str]], shown: Sequence[str]) -> dict[str, Any]:
        choice = "".join(fields.get("choice", ()))
        if choice not in (*SIDES, *((TIE,) if self.ties else ())):
            raise Unanswered("Please choose A or B, or that both are equal." if self.ties else "Please choose A or B.")
        reasons = [reason for reason in self.reasons if reason in fields.get("reason", ())]
        preferred = TIE if choice == TIE else shown[SIDES.index(choice)]
        value: dict[str, Any] = {"preferred": preferred, "choice": choice}
        return value | ({"reasons": reasons} if reasons else {}) | self._comment(fields)

    def fields(self, value: Mapping[str, Any]) -> dict[str, list[str]]:
        return {
            "choice": [value["choice"]],
            "reason": list(value.get("reasons", ())),
            "comment": [value.get("comment", "")],
        }

    def known(self, expected: Any, models: Sequence[str]) -> str | None:
        fits = (*models, *((TIE,) if self.ties else ()))
        return None if expected in fits else f"must be one of {', '.join(fits)}"

    def attention(self, number: int) -> tuple[str, dict[str, str], Any]:
        right, wrong = (
            "This is a check of attention. Please choose **this** answer.",
            "Please do not choose this answer.",
        )
        return "", {"check": right, "not": wrong}, "check"
