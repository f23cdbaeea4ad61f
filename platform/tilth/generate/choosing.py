"""Rows as multiple choice: what is offered, which of it is right, which of it a model finds likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from tilth.config import Component
from tilth.data.schema import Row, value_at
from tilth.errors import Problem, StageError
from tilth.generate.render import asked, row_problems

_PROMPT = "{{ text }}\nLabel:"


class Said(NamedTuple):
    """What a model makes of a choice after what it continues: summed negative log-likelihood in nats, its tokens."""

    nll: float
    tokens: int


class Choosing(Component):
    """Multiple choice by likelihood (Brown et al. 2020, arXiv:2005.14165).

    Choices are the labels of the data, or stand in each row. Their log-likelihoods are compared as they are, or by
    token or character, which does not favour short ones; lm-evaluation-harness calls `none` acc and `characters`
    acc_norm.
    """

    prompt: str = Field(_PROMPT, description="Jinja template over the row's columns, meta and `labels`, its choices.")
    choices: str | None = Field(None, description="Dotted path of the row's choices; none: all labels of the data.")
    reference: str | None = Field(None, description="Dotted path of the right one, or its place; none: the label.")
    length: Literal["none", "tokens", "characters"] = Field(
        "characters", description="What log-likelihoods are divided by."
    )

    def check(self) -> list[Problem]:
        return [*super().check(), *row_problems(self.prompt)]

    def offered(self, row: Row, labels: Sequence[str]) -> list[str]:
        """The choices of a row, where `labels` are those of the data; StageError where they are none."""
        found = list(labels) if self.choices is None else value_at(row, self.choices)
        if not isinstance(found, list) or len(found) < 2:
            where = "the data's labels" if self.choices is None else self.choices
            raise StageError(f"row {row['id']}: {where} must be two choices or more, not {found!r}")
        if empty := [choice for choice in found if choice is None or not str(choice).strip()]:
            raise StageError(f"row {row['id']}: one of its choices is {empty[0]!r}, which says nothing; leave it out")
        return [str(choice) for choice in found]

    def right(self, row: Row, offered: list[str]) -> str:
        """The right one of the choices of a row; StageError where it is none of them."""
        found = row.get("label") if self.reference is None else value_at(row, self.reference)
        if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < len(offered):
            if offered[found] != str(found) and found in (value_at(row, self.choices) if self.choices else ()):
                what = f"row {row['id']}: {found} is one of its choices and the place of another"
                raise StageError(f"{what}; write choices and the right one as texts")
            return offered[found]
        if found is None or str(found) not in offered:
            raise StageError(f"row {row['id']}: {found!r} at {self.reference or 'label'} is none of its choices")
        return str(found)

    def question(self, row: Row, offered: Sequence[str]) -> str:
        """What the choices of a row continue."""
        return asked(self.prompt, row, tuple(offered))

    def likeliest(self, offered: Sequence[str], said: Sequence[Said]) -> tuple[str, float]:
        """The choice that the model finds likeliest, and its share of all choices' likelihood, 0 to 1."""
        shares = self.shares(offered, said)
        best = max(range(len(offered)), key=shares.__getitem__)
        return offered[best], shares[best]

    def shares(self, offered: Sequence[str], said: Sequence[Said]) -> list[float]:
        """The share of each choice of all choices' likelihood."""
        sizes = {"characters": [len(choice) for choice in offered], "tokens": [each.tokens for each in said]}
        lengths = sizes.get(self.length, [1] * len(offered))
        scores = [-each.nll / length for each, length in zip(said, lengths, strict=True)]
        parts = [math.exp(score - max(scores)) for score in scores]
        return [part / sum(parts) for part in parts]
