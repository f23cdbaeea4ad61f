"""Splitting and sampling, before anything is added to the data: what is asked for. `drawing` does it."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field

from tilth.config import Component
from tilth.errors import Problem

SplitName = Literal["train", "validation", "test"]


class Split(Component):
    """Which share of the rows is held out, by the hash of each row's id."""

    validation: float = Field(0.0, ge=0, lt=1, description="Share of the rows for validation.")
    test: float = Field(0.0, ge=0, lt=1, description="Share of the rows for the test; the rest is for training.")
    seed: int = Field(0, ge=0, description="Another seed, another split.")
    stratify: bool = Field(
        False,
        description="Hold out the same share of every label, exactly. Rows added later may then move others between "
        "splits; without it a row's split depends on its id alone and never changes.",
    )

    def check(self) -> list[Problem]:
        if self.validation + self.test < 1:
            return []
        what = f"validation {self.validation} and test {self.test} leave nothing for training"
        return [Problem("test", what, "give shares that add up to less than 1")]


class Sampling(Component):
    """A part of the rows; the others are recorded as filtered, with reason `not_sampled`."""

    labels: tuple[str, ...] | None = Field(None, min_length=1, description="Only these labels, in every split.")
    per_label: int | None = Field(None, ge=1, description="At most so many rows of each label.")
    rows: int | None = Field(None, ge=1, description="At most so many rows of each split.")
    splits: tuple[SplitName, ...] = Field(
        ("train",), min_length=1, description="The splits that `per_label` and `rows` apply to."
    )
    seed: int = Field(0, ge=0, description="Another seed, another sample.")


def place(seed: int, root: str, purpose: str) -> float:
    """Where the hash puts a row, uniform in [0, 1): the same whatever other rows there are."""
    data = f"{seed}\x00{purpose}\x00{root}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64
