"""A language model's opinion: added rows that it gives a low mark are dropped."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tilth.augment.base import Candidate, Filter, Verdict, VerdictsFunction
from tilth.data.schema import row_seed
from tilth.data.transform import Inputs
from tilth.generate.base import JUDGE, Answer, Generator, Prompt
from tilth.generate.shape import Shape

if TYPE_CHECKING:
    from tilth.data.transform import Fitted

_MARKS = Shape(choices=("1", "2", "3", "4", "5"))
_RUBRIC = (
    "useless: wrong, empty, harmful or not what was asked for",
    "poor: serious mistakes or gaps",
    "fair: partly right, or right but badly put",
    "good: right and clear, with small flaws",
    "excellent: right, clear, complete and natural",
)


class JudgeScore(Filter):
    """Keeps added rows that a model gives a mark of at least `min_score` (single answer grading of LLM-as-a-judge).

    Zheng et al. 2023, arXiv:2306.05685: each row is marked by itself, 1 to 5, so that no position can favour it; what
    remains is the model's taste for length and for its own texts. The likeliest mark is taken, and the model sees the
    whole row: what was asked before what is judged. A small model's marks are worth little: compare them with
    people's on a sample first.

    Recorded: `meta.judge_score`, `meta.judge`, and in `meta.usage` its tokens, which count for a budget. Reasons:
    `judged`; `quarantined/judge` where no mark came.
    """

    version: ClassVar[int] = 2  # its tokens are in the usage of the rows

    generator: Generator = Field(description="The model that marks.")
    criteria: str = Field(
        "helpfulness, correctness, clarity and completeness", min_length=1, description="What is looked at, in words."
    )
    rubric: tuple[str, ...] = Field(_RUBRIC, min_length=5, max_length=5, description="What marks 1 to 5 mean.")
    min_score: int = Field(4, ge=1, le=5, description="Least mark of a row that stays.")
    seed: int = Field(0, ge=0, description="Seed; each row derives its own from it.")

    @property
    def in_flight(self) -> int:
        """As many units as the judge's engine takes at once."""
        return self.generator.in_flight

    def load_verdicts(self, inputs: Inputs, fitted: Fitted) -> VerdictsFunction:
        ask = self.generator.open(inputs)

        def judge(candidates: list[Candidate]) -> list[Verdict]:
            answers = ask([self._prompt(item) for item in candidates])
            return [replace(self._verdict(answer), usage=_cost(answer)) for answer in answers]

        return judge

    def _prompt(self, candidate: Candidate) -> Prompt:
        marks = "\n".join(f"{mark}: {meaning}" for mark, meaning in enumerate(self.rubric, 1))
        text = (
            f"Mark the {self._named()} below for {self.criteria}. Be strict, and do not let its length impress you.\n"
            f"The marks are:\n{marks}\n\n{self._shown(candidate)}\n\nAnswer with the mark alone, a digit from 1 to 5."
        )
        seed = row_seed(self.seed, candidate.row["id"], "judge_score")
        return Prompt(({"role": "user", "content": text},), seed, shape=_MARKS, temperature=0)

    def _named(self) -> str:
        return {"prompt": "instruction", "text": "text", "messages": "conversation"}.get(self.field, "answer")

    def _shown(self, candidate: Candidate) -> str:
        """The text that is judged, after the question that it answers or beside the label that it has."""
        row, parts = candidate.row, []
        if row.get("prompt") and self.field != "prompt":
            parts.append(f"[Question]\n{row['prompt']}\n[End of question]")
        if candidate.label is not None:
            parts.append(f"[Label]\n{candidate.label}\n[End of label]")
        name = self._named().capitalize()
        said = candidate.text
        if self.field == "messages":
            said = "\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"])
        return "\n".join([*parts, f"[{name}]\n{said}\n[End of {name.lower()}]"])

    def _verdict(self, answer: Answer) -> Verdict:
        judge = {"judge": self.generator.title}
        if answer.failure is not None:
            return Verdict(f"quarantined/judge: {answer.failure}", judge)
        first = answer.first
        if not first.whole or first.value is None:
            return Verdict(f"quarantined/judge: {first.finish}, {first.text[:80]!r} is no mark", judge)
        score = int(first.value)
        reason = f"judged: {score} < {self.min_score}" if score < self.min_score else None
        return Verdict(reason, {"judge_score": score, **judge})


def _cost(answer: Answer) -> dict[str, int]:
    """The tokens of a mark, by names of their own: a judge may have other prices than the model that made the row."""
    return {f"{JUDGE}{name}": count for name, count in answer.usage.items()}
