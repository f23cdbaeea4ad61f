"""Rewards: what a completion is worth, for reinforcement learning to raise and for a gold measure to watch.

| kind         | asks                                                    | a reward is                         |
|--------------|---------------------------------------------------------|-------------------------------------|
| reward_model | a model with a scalar head, or an ensemble of them      | the mean of its scores              |
| function     | a function of the user's own, "module:function"         | what it returns                     |
| judge        | a judge of `tilth.generate.judges`, such as a rubric    | the mean of its marks               |
| code         | the tests that a row carries, in a sandbox              | 1 where they pass, else 0           |
| sum          | several rewards                                         | their weighted sum                  |

Whoever scores calls `reward.load(inputs)` once in a worker and gets a function (prompts, completions, rows) → rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from tilth.config import EXECUTION, Component, FunctionRef, ModelRef
from tilth.data.schema import Row, row_seed
from tilth.data.transform import Inputs
from tilth.errors import Problem, StageError
from tilth.generate.drafts import user
from tilth.generate.judges import Contest, Judge, Pairwise
from tilth.generate.sandbox import Limits
from tilth.kinds import load_object

if TYPE_CHECKING:
    from tilth.generate.engines.reward import RewardScorer, Scored

#: Prompts, their completions, and the source row of each → one finite number for each, in order; more is better. A
#: prompt is the text of the row, without a chat template; rows are there for answers to check against.
RewardFunction = Callable[[list[str], list[str], list[Row]], list[float]]


class Reward(Component, family="reward"):
    """Says what completions are worth. A kind writes `load`."""

    def load(self, inputs: Inputs) -> RewardFunction:
        """The function that scores, called once in each worker: load models here."""
        raise TypeError(f"{type(self).__name__} must define load()")


def disagreement(
    reward: RewardFunction, prompts: list[str], completions: list[str], rows: list[Row]
) -> list[float] | None:
    """By how much the members of an ensemble disagree on each completion; None where `reward` is no ensemble.

    It is the standard deviation of their scores; of a weighted sum that of the sum, its parts taken as independent.
    A completion on which they part is one that the reward models were not trained for (Coste et al. 2024,
    arXiv:2310.02743).
    """
    ask = getattr(reward, "disagreement", None)
    return None if ask is None else cast("list[float] | None", ask(prompts, completions, rows))


class RewardModel(Reward):
    """The score of a reward model: one that a stage of kind reward trained, or any sequence classifier of one output.

    Of an ensemble, the mean of its members less `caution` times their standard deviation (uncertainty-weighted
    optimisation, Coste et al. 2024, arXiv:2310.02743). A text that is too long loses its beginning.
    """

    model: ModelRef = Field(description='"@stage" of kind reward, a hub name, or a directory.')
    caution: float = Field(0.0, ge=0, description="Standard deviations of an ensemble taken off its mean.")
    batch_tokens: int = Field(
        8192, ge=256, json_schema_extra=EXECUTION, description="Padded tokens run at once; halved when memory runs out."
    )

    def load(self, inputs: Inputs) -> RewardFunction:
        from tilth.generate.engines.reward import RewardScorer

        return Scores(RewardScorer(inputs.model(self.model), self.batch_tokens), self.caution)


class Scores:
    """The RewardFunction of a reward model. StageError on a score that is no finite number."""

    def __init__(self, scorer: RewardScorer, caution: float) -> None:
        self.scorer, self.caution = scorer, caution

    def __call__(self, prompts: list[str], completions: list[str], rows: list[Row]) -> list[float]:
        return [item.score - self.caution * item.disagreement for item in self._scored(prompts, completions)]

    def disagreement(self, prompts: list[str], completions: list[str], rows: list[Row]) -> list[float] | None:
        found = self._scored(prompts, completions)
        return [item.disagreement for item in found] if all(len(item.members) > 1 for item in found) else None

    def _scored(self, prompts: list[str], completions: list[str]) -> list[Scored]:
        found = self.scorer(list(zip(prompts, completions, strict=True)))
        _finite([item.score for item in found], "the reward model")
        return found


class Function(Reward):
    """A function of the user's own, called with (prompts, completions, rows); see `tilth.train.answers` for one.

    The content of its module is part of the identity of what is trained with it.
    """

    function: FunctionRef = Field(description='"module:function"; it returns a number for each completion.')

    def check(self) -> list[Problem]:
        try:
            load_object(self.function, "the reward")
        except LookupError as error:
            return [Problem("function", str(error), "name a function in a module that can be imported")]
        return []

    def load(self, inputs: Inputs) -> RewardFunction:
        function = load_object(self.function, "the reward")

        def score(prompts: list[str], completions: list[str], rows: list[Row]) -> list[float]:
            found = [float(value) for value in function(prompts, completions, rows)]
            if len(found) != len(completions):
                raise StageError(f"{self.function} gave {len(found)} rewards for {len(completions)} completions")
            return _finite(found, self.function)

        return score


class Judged(Reward):
    """The score that a judge gives a completion by itself, such as the mean mark of a rubric (`aspects`, 1 to 5)."""

    judge: Judge = Field(description="Who marks, and by which rubric.")
    unjudged: float = Field(1.0, description="The reward where no usable mark came.")
    seed: int = Field(0, ge=0, description="Seed; each completion derives its own from it.")

    def check(self) -> list[Problem]:
        if isinstance(self.judge, Pairwise):
            what = "pairwise compares answers, and here each is marked by itself"
            return [Problem("judge", what, "use aspects or reward_model")]
        return []

    def load(self, inputs: Inputs) -> RewardFunction:
        judge = self.judge.load(inputs)

        def score(prompts: list[str], completions: list[str], rows: list[Row]) -> list[float]:
            asked = zip(prompts, completions, strict=True)
            found = judge([self._contest(prompt, completion) for prompt, completion in asked])
            marks = [item.scores[0] for item in found]
            return [self.unjudged if mark is None else mark for mark in marks]

        return score

    def _contest(self, prompt: str, completion: str) -> Contest:
        seed = row_seed(self.seed, f"{prompt}\x00{completion}", "judge")
        return Contest(user(prompt), (completion,), seed)


class PassesTests(Reward):
    """1 where the program in a completion passes the tests that its row carries, else 0.

    Nothing runs outside the sandbox, see `tilth.generate.sandbox`. StageError for a row that carries no tests.
    """

    version: ClassVar[int] = 2  # a program that prints its own source passes no tests

    tests_from: tuple[str, ...] = Field(
        ("test_list",), min_length=1, description="Keys of meta with tests, texts or lists of lines, in order."
    )
    limits: Limits = Field(default_factory=Limits, description="What a program may use.")
    threads: int = Field(2, ge=1, json_schema_extra=EXECUTION, description="Programs that run at a time.")

    def load(self, inputs: Inputs) -> RewardFunction:
        from tilth.generate.sandbox import require_sandbox

        require_sandbox()

        def score(prompts: list[str], completions: list[str], rows: list[Row]) -> list[float]:
            with ThreadPoolExecutor(self.threads) as pool:
                return list(pool.map(self._passes, completions, rows))

        return score

    def _passes(self, completion: str, row: Row) -> float:
        from tilth.generate.programs import code_of, given_tests
        from tilth.generate.sandbox import run_python

        tests = given_tests(row, self.tests_from)
        if not tests:
            raise StageError(
                f"row {row['id']} carries no tests in meta.{self.tests_from[0]}; let the source `carry` them, or set "
                "tests_from"
            )
        return float(run_python(code_of(completion), tests=tests, limits=self.limits).ok)


class WeightedSum(Reward):
    """The weighted sum of several rewards."""

    parts: dict[str, Reward] = Field(min_length=1, description="The rewards, by a name of your own.")
    weights: dict[str, float] = Field(default_factory=dict, description="Weight by name; 1 where none is given.")

    def check(self) -> list[Problem]:
        names = ", ".join(self.parts)
        return [
            Problem(f"weights.{name}", "weighs no reward", f"use one of: {names}")
            for name in self.weights
            if name not in self.parts
        ]

    def load(self, inputs: Inputs) -> RewardFunction:
        weights = [self.weights.get(name, 1.0) for name in self.parts]
        return Sum([part.load(inputs) for part in self.parts.values()], weights)


class Sum:
    """The RewardFunction of a weighted sum."""

    def __init__(self, parts: Sequence[RewardFunction], weights: Sequence[float]) -> None:
        self.parts, self.weights = parts, weights

    def __call__(self, prompts: list[str], completions: list[str], rows: list[Row]) -> list[float]:
        total = [0.0] * len(completions)
        for weight, part in zip(self.weights, self.parts, strict=True):
            values = part(prompts, completions, rows)
            total = [before + weight * value for before, value in zip(total, values, strict=True)]
        return total

    def disagreement(self, prompts: list[str], completions: list[str], rows: list[Row]) -> list[float] | None:
        told = [disagreement(part, prompts, completions, rows) for part in self.parts]
        weighted = zip(self.weights, told, strict=True)
        columns = [[weight * value for value in found] for weight, found in weighted if found is not None]
        return [math.hypot(*values) for values in zip(*columns, strict=True)] if columns else None


def _finite(values: list[float], whose: str) -> list[float]:
    """The same values; StageError where one is no finite number."""
    for number, value in enumerate(values):
        if not math.isfinite(value):
            raise StageError(f"{whose} gave the reward {value} to completion {number} of {len(values)}; mend it")
    return values
