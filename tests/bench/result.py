"""What a benchmark is given and what it answers."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from tests.bench.paired import ROOT, Paired

SHARED = Path(os.environ.get("TILTH_SHARED", ROOT.parent / "shared"))


@dataclass(frozen=True)
class Options:
    """How long to measure, and with what."""

    rounds: int = 5
    full: bool = False
    #: python of an environment with the peer tools
    peer: str | None = None

    def size(self, small: int, full: int) -> int:
        return full if self.full else small


@dataclass(frozen=True)
class Result:
    """One line of the table: the median ratio of ours by the other, on the wall clock and by CPU time."""

    what: str
    ratio: float
    rounds: int
    aim: float | None = None
    #: ratio by CPU time of both sides
    cpu_ratio: float | None = None
    #: a cost, where less is better
    at_most: bool = False
    note: str = ""

    @property
    def reached(self) -> bool | None:
        if self.aim is None:
            return None
        return self.ratio <= self.aim if self.at_most else self.ratio >= self.aim

    @property
    def verdict(self) -> str:
        return {None: "", True: "reached", False: "missed"}[self.reached]

    @property
    def wanted(self) -> str:
        return "" if self.aim is None else f"{'≤' if self.at_most else '≥'} {self.aim:g}"

    def cells(self) -> tuple[str, ...]:
        """As cells of the table whose head is `COLUMNS`."""
        cpu = "" if self.cpu_ratio is None else f"{self.cpu_ratio:.3g}"
        return self.what, self.wanted, f"{self.ratio:.3g}", cpu, self.verdict, str(self.rounds), self.note


COLUMNS = ("What", "Aim", "Ratio", "By CPU time", "", "Rounds", "Notes")


def compared(what: str, found: Paired, aim: float | None = None, note: str = "") -> Result:
    """The result of a comparison where more rows a second is better."""
    a, b = found.medians()
    rates = f"{a:.3g} and {b:.3g} rows/s"
    ratio, cpu = found.ratio(), found.ratio("cpu_rate")
    return Result(what, ratio, len(found.a), aim, cpu, note=f"{rates}; {note}" if note else rates)


def banking_texts(count: int) -> list[str]:
    """Questions of customers of a bank, from the sample in examples/; from its start again when it is used up."""
    with open(ROOT / "examples/data/banking77/train.csv", encoding="utf-8", newline="") as handle:
        texts = [row["text"] for row in csv.DictReader(handle)]
    return [texts[index % len(texts)] for index in range(count)]
