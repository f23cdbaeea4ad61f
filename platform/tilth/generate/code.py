"""Code instructions: a problem, a program and tests, run in a sandbox and kept only where the tests pass.

Write a function first_repeated(text) …  →  def first_repeated(text): …   with   assert first_repeated("abca") == "a"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from tilth.data.schema import Row, RowType, row_rng
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.generate.base import Generator, Prompt
from tilth.generate.drafts import Draft, asked, instruction_of, user, yields
from tilth.generate.method import MakeFunction, Pool, PoolMethod, Yield, opened
from tilth.generate.programs import assertions_in, code_of, given_tests, names_in
from tilth.generate.sandbox import Limits, require_sandbox, run_python

_INVENT = """\
Here are Python programming problems:
{shown}
Write one new problem, unlike those, that one Python function solves with only the standard library. Say the name of \
the function, its arguments and what it returns. Write only the problem."""
_SOLVE = "{problem}\n\nWrite the solution in Python, with only the standard library. Answer with one block of code."
_TEST = """\
Here is a Python programming problem and a function for it.
{problem}
```python
{code}
```
Write {count} tests: lines of the form `assert function(arguments) == result`, each with the result that the problem \
asks for, also in unusual cases. Answer with one block of code."""


class Code(PoolMethod):
    """Code instructions that are executed (as in SelfCodeAlign; Wei et al. 2024, arXiv:2410.24198).

    tests: written. The model, shown problems of the data, invents another, solves it and writes tests of it. Kept is
    a program that passes them (`fails`), if they are tests of its functions (`no_tests`) and do not also pass where
    each of these returns None (`vacuous`). tests: given. The model solves the problems of the data, whose rows carry
    their tests in `meta`; a problem is asked about in each round until it is solved. Nothing runs outside the
    sandbox, see `tilth.generate.sandbox`; it is tried before the model is asked.
    """

    version: ClassVar[int] = 2  # a program that prints its own source passes no tests
    takes: ClassVar[tuple[RowType, ...]] = ("completion", "text")

    tests: Literal["written", "given"] = Field("written", description="By the model, or in the rows of the data.")
    tests_from: tuple[str, ...] = Field(
        ("test_list",), min_length=1, description="Keys of meta with given tests, texts or lists of lines, in order."
    )
    min_tests: int = Field(3, ge=1, description="Fewest tests that the model must write.")
    demonstrations: int = Field(3, ge=1, le=16, description="Problems shown where a new one is invented.")
    limits: Limits = Field(default_factory=Limits, description="What a program may use.")

    def plan(self, number: int, pool: Pool, wanted: int) -> list[Row]:
        if self.tests == "given":
            return self._unsolved(number, pool)[:wanted]
        problems = [text for row in pool.seeds if (text := instruction_of(row))]
        return [self._inventing(number, index, problems) for index in range(wanted)]

    def _inventing(self, number: int, index: int, problems: Sequence[str]) -> Row:
        rng = row_rng(self.seed, f"{number}.{index}", self.via)
        return self.ask(number, index, demonstrations=rng.sample(problems, min(self.demonstrations, len(problems))))

    def _unsolved(self, number: int, pool: Pool) -> list[Row]:
        """Problems of the data that nothing accepted solves, in an order drawn anew in each round."""
        given = [(row, tests) for row in pool.seeds if (tests := given_tests(row, self.tests_from))]
        if not given:
            raise StageError(
                f"no row carries tests in meta.{self.tests_from[0]}; let the source `carry` them, or set tests_from"
            )
        solved = {row["parent"] for row in pool.accepted}
        left = [(row, tests) for row, tests in given if row["id"] not in solved]
        row_rng(self.seed, str(number), self.via).shuffle(left)
        return [
            self.ask(number, index, {**row, "prompt": _with_a_test(row, tests), "completion": ""}, tests=tests)
            for index, (row, tests) in enumerate(left)
        ]

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        require_sandbox()
        ask = opened(generator, inputs)

        def make(asks: list[Row]) -> list[Yield]:
            drafts = [Draft(row) for row in asks]
            if self.tests == "written":
                for draft, answer in asked(ask, drafts, self._posing):
                    draft.payload["prompt"] = answer.text.strip()
            for draft, answer in asked(ask, drafts, self._solving):
                draft.payload["prompt"] = _problem(draft)
                draft.meta["code"] = code_of(answer.text)
                draft.payload["completion"] = f"```python\n{draft.meta['code']}\n```"
            if self.tests == "written":
                for draft, answer in asked(ask, drafts, self._testing):
                    self._take_tests(draft, code_of(answer.text))
            for draft in drafts:
                self._judge(draft)
            return yields(asks, drafts)

        return make

    def _posing(self, draft: Draft) -> Prompt:
        shown = "\n".join(f"- {text}" for text in draft.ask["meta"]["demonstrations"])
        return Prompt(user(_INVENT.format(shown=shown)), self.seed_of(draft.ask, "problem"))

    def _solving(self, draft: Draft) -> Prompt:
        return Prompt(user(_SOLVE.format(problem=_problem(draft))), self.seed_of(draft.ask, "solution"))

    def _testing(self, draft: Draft) -> Prompt:
        text = _TEST.format(problem=_problem(draft), code=draft.meta["code"], count=self.min_tests + 2)
        return Prompt(user(text), self.seed_of(draft.ask, "tests"))

    def _take_tests(self, draft: Draft, text: str) -> None:
        found = assertions_in(text, names_in(draft.meta["code"]))
        draft.meta["tests"] = "\n".join(found)
        if len(found) < self.min_tests:
            draft.reason = f"no_tests: {len(found)} tests of the program's functions, fewer than {self.min_tests}"

    def _judge(self, draft: Draft) -> None:
        """Run the program with its tests."""
        if draft.reason is not None:
            return
        tests = draft.meta.setdefault("tests", draft.ask["meta"].get("tests", ""))
        code = draft.meta.pop("code")
        outcome = run_python(code, tests=tests, limits=self.limits)
        if outcome.why is not None:
            draft.reason = f"fails: {outcome.why}"
        elif self.tests == "written":
            hollow = "".join(f"\ndef {name}(*_, **__): return None" for name in names_in(code))
            if run_python(code + hollow, tests=tests, limits=self.limits).ok:
                draft.reason = "vacuous: the tests pass where nothing is returned as well"


def _problem(draft: Draft) -> str:
    return str(draft.payload.get("prompt") or draft.ask["prompt"])


def _with_a_test(row: Row, tests: str) -> str:
    """The problem and its first test, without which nobody would know what to call the function."""
    first = next((line for line in tests.splitlines() if line.startswith("assert")), "")
    return f"{instruction_of(row)}\n\nIt must pass this test:\n{first}" if first else instruction_of(row)
