"""Programs that a model wrote, run against tests in the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pydantic import Field

from tilth.data.schema import Row
from tilth.data.transform import Inputs
from tilth.errors import Problem, StageError
from tilth.evaluate.measures.base import Metric, Statistics, Terms
from tilth.generate.programs import code_of
from tilth.generate.render import RenderError, fault, render
from tilth.generate.sandbox import Limits, require_sandbox, run_python


class PassAtK(Metric):
    """Share of problems that one of k programs solves, estimated without bias from n samples (Chen et al. 2021).

    arXiv:2107.03374. Programs run in the sandbox of `tilth.generate.sandbox` and nowhere else. HumanEval is
    `program: "{{ prompt }}{{ answer }}"` and `tests: "{{ meta.test }}\\ncheck({{ meta.entry_point }})"`, asked in the
    form `text`, of data with `clean: {whitespace: keep}`: its prompts end in a line break, its answers begin with an
    indent. MBPP is the default.
    """

    version: ClassVar[int] = 2  # a program that prints its own source passes no tests
    reads: ClassVar[tuple[str, ...]] = ("answers",)
    best: ClassVar[float | None] = 1.0

    k: tuple[int, ...] = Field((1,), min_length=1, description="Numbers of programs, the one that counts most first.")
    program: str = Field(
        "{{ code }}", description="Jinja template of the program: `answer`, `code` (its block of code), columns, meta."
    )
    tests: str = Field(
        "{{ meta.test_list | join('\\n') }}", min_length=1, description="Jinja template of the tests: columns, meta."
    )
    limits: Limits = Field(default_factory=Limits, description="What a program may use.")

    def check(self) -> list[Problem]:
        found = [(name, fault(getattr(self, name))) for name in ("program", "tests")]
        problems = [Problem(name, why) for name, why in found if why]
        if min(self.k) < 1:
            problems.append(Problem("k", f"holds {min(self.k)}", "use numbers of 1 or more"))
        return problems

    def load(self, inputs: Inputs) -> Callable[[list[Row]], list[Terms]] | None:
        require_sandbox()
        return lambda rows: [self._solved(row) for row in rows]

    def _solved(self, row: Row) -> Terms:
        """How many samples there are, and how many of them pass."""
        answers = row["meta"]["answers"]
        try:
            tests = render(self.tests, **row)
            programs = [render(self.program, **row, answer=answer, code=code_of(answer.strip())) for answer in answers]
        except RenderError as error:
            raise StageError(f"row {row['id']}: {error}; mend the program or tests of pass_at_k") from error
        passed = sum(run_python(program, tests=tests, limits=self.limits).ok for program in programs)
        return [float(len(answers)), float(passed)]

    def figures(self, rows: Sequence[Row]) -> Statistics:
        from tilth.data.bootstrap import mean

        terms = [(int(n), int(c)) for n, c in self.terms(rows)]
        return {f"pass@{k}": mean([pass_at_k(n, c, k) for n, c in terms]) for k in self.k}

    def detail(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {"samples": int(self.terms(rows)[0][0])}


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k): the chance that k of n programs, c of them right, hold a right one."""
    import numpy as np

    if n - c < k:
        return 1.0
    # the form of the paper's appendix A, which does not overflow
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))
