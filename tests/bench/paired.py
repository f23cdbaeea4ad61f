"""Two programs measured in turn on one machine, so that what else runs there weighs on both alike.

Each side is a `Worker`: a process, perhaps of another environment, that loads once and then works when asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Paired:
    """Figures of both sides, round by round."""

    a: list[float]
    b: list[float]

    @property
    def ratio(self) -> float:
        """The median over the rounds of a's figure by b's figure of the same round."""
        return median(x / y for x, y in zip(self.a, self.b, strict=True))

    def summary(self) -> dict[str, Any]:
        return {"a": median(self.a), "b": median(self.b), "ratio": self.ratio, "a_all": self.a, "b_all": self.b}


def paired(a: Callable[[], float], b: Callable[[], float], rounds: int = 5) -> Paired:
    """Both in each round, the first to go changing from round to round; one round before is not counted."""
    a()
    b()
    found = Paired([], [])
    for number in range(rounds):
        sides = [(a, found.a), (b, found.b)]
        for measure, figures in sides if number % 2 == 0 else sides[::-1]:
            figures.append(measure())
    return found


class Worker:
    """A process that runs `serve`; each call asks it to work once and returns its figure."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts: dict[str, Any] = {}

    def __call__(self) -> float:
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the worker has no pipes")
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(self.process.args)} ended with {self.process.wait()}")  # type: ignore[arg-type]
        self.facts = json.loads(answer)
        return float(self.facts["figure"])

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait()


def serve(work: Callable[[], dict[str, Any]]) -> None:
    """The worker's side: for each line read, do the work once and answer its facts, "figure" among them."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for _ in sys.stdin:
        print(json.dumps(work()), file=answers, flush=True)
