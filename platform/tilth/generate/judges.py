"""Judges: which of several answers to one prompt is better, and by how much.

| kind         | asks                                                | a score is                               |
|--------------|-----------------------------------------------------|------------------------------------------|
| pairwise     | a model, about each pair of answers in both orders  | the share of its comparisons that it won |
| aspects      | a model, for marks from 1 to 5 on several aspects   | the mean of its marks                    |
| reward_model | a classifier with one output, about each answer     | that output                              |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar

from pydantic import Field

from tilth.config import EXECUTION, Component, ModelRef
from tilth.data.schema import row_seed
from tilth.data.transform import Inputs
from tilth.errors import Problem
from tilth.generate.base import Answer, Generator, Message, Prompt
from tilth.generate.shape import Shape

ASPECTS = {
    "instruction_following": "It does what was asked, all of it and nothing else.",
    "truthfulness": "What it says is true and agrees with what was given.",
    "honesty": "It is as sure as it has reason to be, and says so where it does not know.",
    "helpfulness": "It is of use to the one who asked: clear, complete, to the point.",
}
_WINNER = Shape(choices=("A", "B", "tie"))
_MARK = Shape(choices=("1", "2", "3", "4", "5"))


@dataclass(frozen=True)
class Contest:
    """Several answers to the same prompt; `seed` decides the randomness of whoever judges them."""

    messages: tuple[Message, ...]
    candidates: tuple[str, ...]
    seed: int = 0

    @property
    def question(self) -> str:
        """The prompt as one text."""
        return transcript(self.messages)


@dataclass(frozen=True)
class Judgement:
    """A score for each candidate, None where there is none; more is better. `failure` says why nothing was judged.

    `figures` are counts that may be summed over contests, `answers` what it cost.
    """

    scores: tuple[float | None, ...]
    figures: dict[str, int] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    failure: str | None = None

    def win_rate(self) -> float | None:
        """Of two candidates, how far the second one wins: 1, 0 or a half for a tie; None where nothing was judged."""
        first, second = self.scores
        if self.failure is not None or first is None or second is None:
            return None
        return 0.5 if first == second else float(second > first)


#: Contests → one judgement each, in order. Thread-safe.
JudgeFunction = Callable[[Sequence[Contest]], list[Judgement]]


class Judge(Component, family="judge"):
    """Scores answers. A kind writes `load`."""

    #: whether it compares answers, so that a score means nothing beside those of another contest
    compares: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """What is recorded with each judgement."""
        return self.kind

    @property
    def in_flight(self) -> int:
        """Rows that one worker should have in flight."""
        return 1

    def load(self, inputs: Inputs) -> JudgeFunction:
        """The function from contests to judgements, called once in each worker."""
        raise TypeError(f"{type(self).__name__} must define load()")


class Asked(Judge, family="judge"):
    """What judges that ask a language model share."""

    generator: Generator = Field(description="The model that judges.")

    @property
    def title(self) -> str:
        return f"{self.kind}: {self.generator.title}"

    @property
    def in_flight(self) -> int:
        return self.generator.in_flight

    def load(self, inputs: Inputs) -> JudgeFunction:
        ask = self.generator.open(inputs)

        def judge(contests: Sequence[Contest]) -> list[Judgement]:
            asked = [self.prompts(contest) for contest in contests]
            answers = iter(ask([prompt for prompts in asked for prompt in prompts]))
            return [
                self.judged(contest, [next(answers) for _ in prompts])
                for contest, prompts in zip(contests, asked, strict=True)
            ]

        return judge

    def prompts(self, contest: Contest) -> list[Prompt]:
        """All that is asked about a contest."""
        raise TypeError(f"{type(self).__name__} must define prompts()")

    def judged(self, contest: Contest, answers: Sequence[Answer]) -> Judgement:
        """What the answers to `prompts` mean."""
        raise TypeError(f"{type(self).__name__} must define judged()")


class Pairwise(Asked):
    """Which of two answers is better, asked in both orders (Zheng et al. 2023, arXiv:2306.05685).

    An answer wins a pair only if it is named in both orders; all else is a tie, half a win for each. Figures:
    `pairs`, `flipped` (the same place was named both times, so the place decided), `first` (of those, the first
    place), `unjudged` (an order without a usable answer).
    """

    compares: ClassVar[bool] = True

    instruction: str = Field(
        "Judge which answer serves the user better. Do not let their order or their length decide.",
        description="What the judge is told.",
    )

    def prompts(self, contest: Contest) -> list[Prompt]:
        return [
            self._prompt(contest, order)
            for one, other in combinations(range(len(contest.candidates)), 2)
            for order in ((one, other), (other, one))
        ]

    def _prompt(self, contest: Contest, order: tuple[int, int]) -> Prompt:
        first, second = (contest.candidates[index] for index in order)
        text = (
            f"{self.instruction}\n\n[Question]\n{contest.question}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n"
            "Which one is better? Say A, B or tie."
        )
        seed = row_seed(contest.seed, f"{order[0]}.{order[1]}", "pairwise")
        return Prompt(({"role": "user", "content": text},), seed, shape=_WINNER, temperature=0)

    def judged(self, contest: Contest, answers: Sequence[Answer]) -> Judgement:
        wins = [0.0] * len(contest.candidates)
        figures = dict.fromkeys(("pairs", "flipped", "first", "unjudged"), 0)
        said = [answer.first.value if answer.first.whole else None for answer in answers]
        pairs = list(combinations(range(len(wins)), 2))
        for (one, other), there, back in zip(pairs, said[::2], said[1::2], strict=True):
            figures["pairs"] += 1
            figures["unjudged"] += None in (there, back)
            figures["flipped"] += there == back and there in ("A", "B")
            figures["first"] += there == back == "A"
            share = {("A", "B"): 1.0, ("B", "A"): 0.0}.get((str(there), str(back)), 0.5)
            wins[one] += share
            wins[other] += 1 - share
        failure = _nothing(answers) if figures["unjudged"] == len(pairs) else None
        rivals = max(1, len(wins) - 1)
        return Judgement(tuple(round(won / rivals, 4) for won in wins), figures, tuple(answers), failure)


class Aspects(Asked):
    """Marks from 1 to 5 on several aspects, each asked by itself (UltraFeedback: Cui et al. 2024, arXiv:2310.01377).

    A judge that is asked once gives many answers the same mark. The mean of several marks that are drawn by its own
    probabilities, whatever the generator's sampling leaves out, tells them apart. Figures: `marks`, and `unjudged`,
    those without a usable answer, which the mean leaves out.
    """

    version: ClassVar[int] = 2  # several marks are drawn from all that the judge finds possible

    aspects: dict[str, str] = Field(ASPECTS, min_length=1, description="Aspect: what deserves full marks in it.")
    rubric: tuple[str, ...] = Field((), description="What marks 1 to 5 mean; none: 1 very poor, 5 excellent.")
    samples: int = Field(
        1, ge=1, le=64, description="Marks drawn for each aspect (G-Eval: arXiv:2303.16634, 20); 1: the likeliest."
    )

    def check(self) -> list[Problem]:
        if len(self.rubric) in (0, 5):
            return []
        return [Problem("rubric", f"says what {len(self.rubric)} marks mean", "there are five, from 1 to 5")]

    def load(self, inputs: Inputs) -> JudgeFunction:
        """Several marks estimate the mean of all by the judge's probabilities (G-Eval), so none may be left out."""
        generator = self.generator if self.samples == 1 else self.generator.unclipped()
        return Asked.load(self.model_copy(update={"generator": generator}), inputs)

    def prompts(self, contest: Contest) -> list[Prompt]:
        return [
            self._prompt(contest, number, name, what)
            for number in range(len(contest.candidates))
            for name, what in self.aspects.items()
        ]

    def _prompt(self, contest: Contest, number: int, name: str, what: str) -> Prompt:
        marks = "\n".join(f"{mark}: {meaning}" for mark, meaning in enumerate(self.rubric, 1))
        text = (
            f"[Question]\n{contest.question}\n\n[Answer]\n{contest.candidates[number]}\n\n"
            f"Mark the answer for {name.replace('_', ' ')}: {what}\n"
            f"{marks or '1 is very poor, 5 is excellent.'} Say the mark alone."
        )
        seed = row_seed(contest.seed, f"{number}.{name}", "aspects")
        temperature = 0 if self.samples == 1 else 1
        return Prompt(({"role": "user", "content": text},), seed, self.samples, _MARK, temperature)

    def judged(self, contest: Contest, answers: Sequence[Answer]) -> Judgement:
        drawn = [_marks(answer) for answer in answers]
        marks, size = [_mean(each) for each in drawn], len(self.aspects)
        scores = tuple(_mean(marks[start : start + size]) for start in range(0, len(marks), size))
        figures = {"marks": sum(map(len, drawn)), "unjudged": sum(each.count(None) for each in drawn)}
        return Judgement(scores, figures, tuple(answers), _nothing(answers) if set(marks) == {None} else None)


class RewardModel(Judge):
    """The score that a reward model gives to prompt and answer: a sequence classifier with one output.

    What a stage of kind reward trained reads prompt and answer as it did there, of an ensemble the mean counts. Others
    see the conversation where their tokenizer has a chat template, else prompt and answer with a blank line between
    them. What is too long loses its beginning. A score that is no finite number is none. Figures: `scored`, `cut`,
    `unjudged`.
    """

    model: ModelRef = Field(description='Directory, hub name, or "@stage" of the model.')
    batch_tokens: int = Field(
        8192, ge=256, json_schema_extra=EXECUTION, description="Padded tokens run at once; halved when memory runs out."
    )

    @property
    def title(self) -> str:
        return f"{self.kind}: {self.model}"

    def load(self, inputs: Inputs) -> JudgeFunction:
        from tilth.generate.engines.reward import RewardScorer

        score = RewardScorer(inputs.model(self.model), self.batch_tokens)

        def judge(contests: Sequence[Contest]) -> list[Judgement]:
            found = iter(score([(item.messages, text) for item in contests for text in item.candidates]))
            judgements = []
            for contest in contests:
                pairs = [next(found) for _ in contest.candidates]
                scores = tuple(item.score if math.isfinite(item.score) else None for item in pairs)
                figures = {"scored": len(pairs), "cut": sum(item.cut for item in pairs)}
                figures["unjudged"] = scores.count(None)
                judgements.append(Judgement(scores, figures))
            return judgements

        return judge


def transcript(messages: Sequence[Message]) -> str:
    """A conversation as one text: a lone question as it is, else as in hh-rlhf, "\\n\\nHuman: …\\n\\nAssistant:"."""
    if len(messages) == 1:
        return messages[0]["content"]
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    turns = "".join(f"\n\n{names.get(turn['role'], turn['role'])}: {turn['content']}" for turn in messages)
    return f"{turns}\n\nAssistant:".strip()


def position_bias(figures: dict[str, Any]) -> dict[str, float]:
    """Of summed figures of `pairwise`: the share of pairs that the place decided, and of these for the first place."""
    pairs, flipped = figures.get("pairs", 0), figures.get("flipped", 0)
    found = {"position_bias": round(flipped / pairs, 4)} if pairs else {}
    return {**found, "first_place": round(figures["first"] / flipped, 4)} if flipped else found


def _marks(answer: Answer) -> list[int | None]:
    """A mark for each sample, None where it is none."""
    said = answer.completions or (answer.first,)
    return [int(each.value) if each.whole else None for each in said]


def _mean(marks: Sequence[float | None]) -> float | None:
    known = [mark for mark in marks if mark is not None]
    return round(sum(known) / len(known), 4) if known else None


def _nothing(answers: Sequence[Answer]) -> str:
    """Why no answer of a judge could be used, by the first of them."""
    first = answers[0] if answers else Answer(failure="it was not asked")
    return first.failure or f"it answered {first.first.text[:80]!r} ({first.first.finish})"
