"""Splitting and sampling: pure functions of row ids, labels and a seed, before anything is added to the data."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
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


def split_of(root: str, split: Split) -> str:
    """The split of one row, from its root id alone."""
    where = place(split.seed, root, "split")
    if where < split.test:
        return "test"
    return "validation" if where < split.test + split.validation else "train"


def assign(labels: Mapping[str, str | None], split: Split) -> dict[str, str]:
    """The split of each root id; `labels` maps root ids to labels, which only a stratified split looks at."""
    if not split.stratify:
        return {root: split_of(root, split) for root in labels}
    groups: dict[str | None, list[str]] = defaultdict(list)
    for root, label in labels.items():
        groups[label].append(root)
    found: dict[str, str] = {}
    for roots in groups.values():
        roots.sort(key=lambda root: (place(split.seed, root, "split"), root))
        test, validation = _quotas(len(roots), (split.test, split.validation))
        names = ["test"] * test + ["validation"] * validation
        found |= dict(zip(roots, names + ["train"] * (len(roots) - len(names)), strict=True))
    return found


def _quotas(rows: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers of rows nearest to the shares (halves up); cumulative, so that no row is lost between two."""
    edges, total = [0], Fraction(0)
    for share in shares:
        total += Fraction(str(share))
        edges.append(int(rows * total + Fraction(1, 2)))
    return tuple(high - low for low, high in pairwise(edges))


def not_sampled(rows: Iterable[tuple[str, str, str, str | None]], sampling: Sampling) -> dict[str, str]:
    """Reasons by key for the rows left out; `rows` are (key, root id, split, label).

    Rows are taken in the order of their root's hash, so a larger sample contains the smaller one.
    """
    dropped: dict[str, str] = {}
    chosen: dict[str, list[tuple[float, str, str | None]]] = defaultdict(list)
    for key, root, split, label in rows:
        if sampling.labels is not None and label not in sampling.labels:
            dropped[key] = "not_sampled: its label is not among those asked for"
        elif split in sampling.splits:
            chosen[split].append((place(sampling.seed, root, "sample"), key, label))
    for split in chosen:
        dropped.update(_over(sorted(chosen[split]), sampling))
    return dropped


def _over(ordered: Sequence[tuple[float, str, str | None]], sampling: Sampling) -> Iterator[tuple[str, str]]:
    """(key, reason) of the rows of one split that are too many of their label, or too many in all."""
    of_label: Counter[str | None] = Counter()
    rows = 0
    for _, key, label in ordered:
        if sampling.per_label is not None and of_label[label] >= sampling.per_label:
            yield key, f"not_sampled: over {sampling.per_label} of its label"
        elif sampling.rows is not None and rows >= sampling.rows:
            yield key, f"not_sampled: over {sampling.rows} rows"
        else:
            of_label[label] += 1
            rows += 1
