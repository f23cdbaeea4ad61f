"""Two programs measured in turn on one machine, so that what else runs there weighs on both alike.

Each side answers facts: "rate", rows a second of wall-clock time, and "cpu_rate", rows a second of its own CPU time,
which says more where the machine is not idle. A `Worker` is a side in its own process, perhaps of another environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, TextIO

ROOT = Path(__file__).parents[2]
Facts = dict[str, Any]
#: a side has that long to end the processes that it started
END_SECONDS = 60.0


@dataclass(frozen=True)
class Paired:
    """Facts of both sides, round by round."""

    a: list[Facts]
    b: list[Facts]

    def ratio(self, key: str = "rate") -> float:
        """The median over the rounds of a's figure by b's figure of the same round."""
        return median(x[key] / y[key] for x, y in zip(self.a, self.b, strict=True))

    def medians(self, key: str = "rate") -> tuple[float, float]:
        return median(x[key] for x in self.a), median(y[key] for y in self.b)


def paired(a: Callable[[], Facts], b: Callable[[], Facts], rounds: int = 5, warm: bool = True) -> Paired:
    """Both in each round, the first to go changing from round to round; `warm`: one round before is not counted."""
    if warm:
        a()
        b()
    found = Paired([], [])
    for number in range(rounds):
        sides = [(a, found.a), (b, found.b)]
        for measure, facts in sides if number % 2 == 0 else sides[::-1]:
            facts.append(measure())
    return found


def timed(rows: int, work: Callable[[], object]) -> Facts:
    """The facts of one piece of work in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"rate": rows / (time.perf_counter() - wall), "cpu_rate": rows / (time.process_time() - cpu)}


class Worker:
    """A process that runs `serve`: `python -m MODULE --serve SIDE …`; each call asks it to work once."""

    def __init__(self, module: str, side: str, *arguments: str, python: str = sys.executable) -> None:
        command = [python, "-m", module, "--serve", side, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.side = side

    def __call__(self) -> Facts:
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the worker has no pipes")
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.side} ended with {self.process.wait()}")
        facts: Facts = json.loads(answer)
        return facts

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()  # it ends by itself, and takes along what it started
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait()


def serve(work: Callable[[], Facts], answers: TextIO) -> None:
    """The worker's side: for each line read, do the work once and answer its facts."""
    for line in iter(sys.stdin.readline, ""):
        if line.strip():
            print(json.dumps(work()), file=answers, flush=True)


def serve_one(sides: dict[str, Callable[[Sequence[str]], Callable[[], Facts]]]) -> None:
    """The main function of a module whose sides are workers: `--serve SIDE ARGUMENT…`."""
    flag, side, *arguments = sys.argv[1:]
    if flag != "--serve":
        raise SystemExit("this is a worker of `python -m tests.bench`")
    # what models, loggers and Ray's workers print goes to the error stream: the answers alone are on standard output
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sides[side](arguments), answers)
