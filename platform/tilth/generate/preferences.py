"""Preference pairs: several answers to each prompt, a judge, and the best beside the worst.

prompt "Why is the sky blue?"  →  4 answers, scores 4.5, 3.0, 2.25, 4.0  →  chosen: the first, rejected: the third
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from tilth.data.schema import Row, RowType
from tilth.data.transform import Inputs
from tilth.errors import Problem, StageError
from tilth.generate.base import Answer, Generate, Generator, Message, Prompt
from tilth.generate.drafts import user
from tilth.generate.judges import Contest, Judge, JudgeFunction, Judgement, position_bias, transcript
from tilth.generate.method import Made, MakeFunction, RowMethod, Yield, opened


@dataclass(frozen=True)
class _Sampled:
    """The answers to one prompt that can be compared, where they come from, and what became of the others."""

    messages: tuple[Message, ...]
    texts: tuple[str, ...]
    #: the number of each one's sample; "reference" for the row's own
    origins: tuple[int | str, ...]
    counts: dict[str, int]


_UNASKED = Made({}, "no_question: no prompt, or no user's turn at its end or before the assistant's last one")


class Preferences(RowMethod):
    """Best and worst of n answers, as judged (UltraFeedback: Cui et al. 2024, arXiv:2310.01377).

    Prompts are those of completions, texts, or conversations up to the assistant's last turn; a row in which nobody
    asks is dropped as `no_question`. Answers that were cut off, are empty or repeat another are no candidates;
    `meta.samples` counts them. A pair whose scores differ by less than `min_margin` is dropped as a tie. `meta` also
    holds every candidate's score, the ranks and the margin.
    """

    takes: ClassVar[tuple[RowType, ...]] = ("completion", "chat", "text")

    judge: Judge = Field(description="Who says which answer is better.")
    n: int = Field(4, ge=1, le=64, description="Answers asked for each prompt.")
    min_margin: float = Field(0.01, ge=0, description="Least difference of the scores of chosen and rejected.")
    include_reference: bool = Field(False, description="The row's own answer is a candidate too.")

    @property
    def makes(self) -> RowType:
        return "preference"

    def check(self) -> list[Problem]:
        if self.n + self.include_reference < 2:
            return [Problem("n", "one answer has nothing to be compared with", "set n to 2 or more")]
        return []

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        ask = opened(generator, inputs)
        if generator is not None and generator.sampling.temperature == 0 and not self.include_reference:
            raise StageError("preferences: at temperature 0 all answers are the same; raise sampling.temperature")
        judge = self.judge.load(inputs)

        def make(asks: list[Row]) -> list[Yield]:
            questions = [_question(row) for row in asks]
            able = [(row, question) for row, question in zip(asks, questions, strict=True) if question]
            compared = iter(self._compared(able, ask, judge) if able else ())
            return [next(compared) if question else Yield([_UNASKED]) for question in questions]

        return make

    def _compared(
        self, asks: Sequence[tuple[Row, tuple[Message, ...]]], ask: Generate, judge: JudgeFunction
    ) -> list[Yield]:
        """What the model answers to each question, the best of it beside the worst."""
        answers = ask([Prompt(question, self.seed_of(row), self.n) for row, question in asks])
        found = [self._sampled(*item, answer) for item, answer in zip(asks, answers, strict=True)]
        able = [at for at, item in enumerate(found) if len(item.texts) > 1]
        contests = [Contest(found[at].messages, found[at].texts, self.seed_of(asks[at][0], "judge")) for at in able]
        judged = dict(zip(able, judge(contests) if contests else [], strict=True))
        return [
            Yield([self._made(item, answer, judged.get(at))], [answer, *(judged[at].answers if at in judged else ())])
            for at, (item, answer) in enumerate(zip(found, answers, strict=True))
        ]

    def _sampled(self, ask: Row, messages: tuple[Message, ...], answer: Answer) -> _Sampled:
        counts: Counter[str] = Counter(asked=self.n, given=len(answer.completions))
        kept: dict[str, int | str] = {}
        for number, item in enumerate(answer.completions):
            text = item.text.strip()
            fault = "cut_off" if not item.whole else "empty" if not text else "repeated" if text in kept else None
            if fault:
                counts[fault] += 1
            else:
                kept[text] = number
        if self.include_reference and (own := _reference(ask)):
            kept.setdefault(own, "reference")
        return _Sampled(messages, tuple(kept), tuple(kept.values()), dict(counts))

    def _made(self, item: _Sampled, answer: Answer, judged: Judgement | None) -> Made:
        meta: dict[str, Any] = {"samples": item.counts}
        payload = {"prompt": transcript(item.messages)}
        if answer.failure is not None:
            return Made(payload, f"quarantined/{answer.failure}", meta)
        if judged is None:
            return Made(payload, f"too_few: {len(item.texts)} of {self.n} answers can be compared", meta)
        meta |= {"judge": self.judge.title, "scores": list(judged.scores), "judged": judged.figures}
        if judged.failure is not None:
            return Made(payload, f"quarantined/judge: {judged.failure}", meta)
        return self._paired(item, judged, payload, meta)

    def _paired(self, item: _Sampled, judged: Judgement, payload: dict[str, str], meta: dict[str, Any]) -> Made:
        """The best and the worst of those that have a score; of equals the earlier is better."""
        scored = [(-score, at) for at, score in enumerate(judged.scores) if score is not None]
        if len(scored) < 2:
            return Made(payload, f"too_few: the judge scored {len(scored)} of {len(item.texts)} answers", meta)
        order = [at for _, at in sorted(scored)]
        best, worst = order[0], order[-1]
        margin = round(max(scored)[0] - min(scored)[0], 4)
        meta |= {"margin": margin, "ranks": [item.origins[at] for at in order]}
        payload = {**payload, "chosen": item.texts[best], "rejected": item.texts[worst]}
        tie = margin == 0 or margin < self.min_margin
        return Made(payload, f"tie: margin {margin:g} < {self.min_margin:g}" if tie else None, meta)

    def summary(self, rows: Iterable[Row]) -> dict[str, float]:
        """How far the place of an answer decided, over all rows, the dropped ones too."""
        total: Counter[str] = Counter()
        for row in rows:
            total.update(row["meta"].get("judged", {}))
        return position_bias(total)


def _question(row: Row) -> tuple[Message, ...]:
    """What is to be answered, as turns; none for a row in which nobody asks."""
    if row.get("messages") is None:
        text = str(row.get("prompt") or row.get("text") or "")
        return user(text) if text.strip() else ()
    turns: Sequence[Message] = row["messages"]
    if turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if not turns or turns[-1]["role"] != "user":
        return ()
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


def _reference(row: Row) -> str:
    """The row's own answer; empty where it has none."""
    turns = row.get("messages")
    if turns:
        return str(turns[-1]["content"]).strip() if turns[-1]["role"] == "assistant" else ""
    return str(row.get("completion") or "").strip()
