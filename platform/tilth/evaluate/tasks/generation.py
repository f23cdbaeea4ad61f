"""Answers that models write, zero-shot or few-shot, by any generator."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth.config import Component
from tilth.data.schema import Row, row_seed
from tilth.data.transform import Inputs, RowsFunction, Transform
from tilth.errors import Problem, StageError
from tilth.evaluate.measures.programs import PassAtK
from tilth.evaluate.tasks.base import Pass, Task
from tilth.evaluate.tasks.prompting import Questions, Shots
from tilth.generate.base import Answer, Generator, Prompt, total_usage
from tilth.generate.hf import HuggingFace
from tilth.generate.render import row_problems
from tilth.generate.shape import Shape
from tilth.generate.vllm import Vllm

if TYPE_CHECKING:
    from tilth.data.transform import Fitted

#: more labels than this make a grammar that costs more than a wrong word
_MOST_LABELS = 1000


class Answers(Component):
    """How answers are drawn, the same for every model."""

    temperature: float = Field(0.0, ge=0, le=2, description="0: the likeliest token each time.")
    max_tokens: int = Field(256, ge=1, description="Longest answer, in tokens; what is cut there is scored as it is.")
    stop: tuple[str, ...] = Field((), description="Texts at which an answer ends; they are left out of it.")
    samples: int = Field(1, ge=1, le=1000, description="Answers to each question; metrics but pass_at_k see the first.")
    seed: int = Field(0, ge=0, description="Seed; each row derives its own from it.")

    def check(self) -> list[Problem]:
        if self.samples > 1 and self.temperature == 0:
            return [Problem("samples", "at temperature 0 all answers are the same", "raise temperature, or ask once")]
        return []


class Generation(Task):
    """Models write an answer to each row, which metrics compare with what is right.

    A labelled row is answered by one of the labels, a question by words of its context, a completion or conversation
    by its end. Each model of the stage is asked by `engine`; `generators` are further models, such as an endpoint,
    or one that needs settings of its own. An answer that is not had at all ends the stage; it goes on from there.
    """

    prompt: str | None = Field(
        None, description="Jinja template over the row's columns, meta and labels; none: what the row's type calls for."
    )
    reference: str | None = Field(
        None, description="Column or dotted path with what is right, a text or several; none: by the row's type."
    )
    form: Literal["chat", "text"] = Field("chat", description="Asked as a turn of a conversation, or continued.")
    shots: Shots | None = Field(None, description="Answered rows that are shown first.")
    engine: Literal["hf", "vllm"] = Field("hf", description="What answers for the stage's models.")
    answers: Answers = Field(default_factory=Answers, description="How answers are drawn.")

    @property
    def shown(self) -> str | None:
        return self.shots.split if self.shots else None

    def check(self) -> list[Problem]:
        problems = [*super().check(), *row_problems(self.prompt)]
        for place, metric in enumerate(self.metrics):
            if isinstance(metric, PassAtK) and max(metric.k) > self.answers.samples:
                what = f"{max(metric.k)} of {self.answers.samples} samples cannot be estimated"
                problems.append(Problem(f"metrics.{place}.k", what, f"set answers.samples to {max(metric.k)} or more"))
        return problems

    def told(self, rows: Iterable[Row]) -> dict[str, Any]:
        labels, shots = _known(rows, self.shots)
        return {
            "template": self.prompt, "reference": self.reference, "form": self.form, "labels": labels, "shots": shots,
        }  # fmt: skip

    def step(self, model: str | Generator, how: Pass) -> Transform:
        if isinstance(model, str):
            model = Vllm(model=model) if self.engine == "vllm" else HuggingFace(model=model)
        return Ask(
            generator=model, prompt=self.prompt, reference=self.reference, form=self.form, shots=self.shots,
            answers=self.answers,
        )  # fmt: skip


class Ask(Transform):
    """Adds to each row what a generator answers: `answers`, `references`, `truncated` and `usage` in `meta`.

    Of a labelled row the answer is one of the labels where it can be read as one, and is its `prediction` too.
    """

    sees_parents: ClassVar[bool] = False

    generator: Generator = Field(description="Who answers.")
    prompt: str | None = Field(None, description="Jinja template of the question.")
    reference: str | None = Field(None, description="Where what is right stands.")
    form: Literal["chat", "text"] = Field("chat", description="Asked in a conversation, or continued.")
    shots: Shots | None = Field(None, description="Answered rows that are shown first.")
    answers: Answers = Field(default_factory=Answers, description="How answers are drawn.")

    @property
    def in_flight(self) -> int:
        return self.generator.in_flight

    def fit(self, rows: Iterable[Row], inputs: Inputs) -> Fitted:
        """The labels that there are, and the shots."""
        import numpy as np

        labels, shots = _known(rows, self.shots)
        return {"labels": np.array(labels, dtype=str), "shots": np.array([json.dumps(shot) for shot in shots])}

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        labels = tuple(fitted["labels"].tolist())
        questions = Questions(
            self.prompt, self.reference, labels, [json.loads(shot) for shot in fitted["shots"].tolist()]
        )
        ask = self.generator.open(inputs)

        def answer(rows: list[Row]) -> list[Row]:
            found = ask([self._question(row, questions) for row in rows])
            return [self._answered(row, item, questions) for row, item in zip(rows, found, strict=True)]

        return answer

    def _question(self, row: Row, questions: Questions) -> Prompt:
        labels = questions.labels if row.get("label") is not None and self.reference is None else ()
        own = self.answers
        return Prompt(
            questions.turns(row) if self.form == "chat" else questions.text(row),
            seed=row_seed(own.seed, row["id"], "evaluate"), n=own.samples, temperature=own.temperature,
            max_tokens=own.max_tokens, stop=own.stop,
            shape=Shape(choices=labels) if 0 < len(labels) <= _MOST_LABELS else None,
        )  # fmt: skip

    def _answered(self, row: Row, answer: Answer, questions: Questions) -> Row:
        if answer.failure is not None:
            raise StageError(
                f"row {row['id']} was not answered ({answer.failure}), and a score without it would not be the score "
                "of the split; mend that, or drop the row upstream; the answers that there are stay"
            )
        texts = [str(item.value) if item.value is not None else self._ended(item.text) for item in answer.completions]
        meta: dict[str, Any] = {
            "answers": texts,
            "references": questions.references(row),
            "truncated": any(item.finish == "length" for item in answer.completions),
            "withheld": sum(item.finish == "filtered" for item in answer.completions),
            "usage": total_usage([answer]),
        }
        if row.get("label") is not None and self.reference is None:
            meta["prediction"] = texts[0].strip()
        return {**row, "meta": {**row["meta"], **meta}}

    def _ended(self, text: str) -> str:
        """An answer without blanks around it; those that begin a continuation belong to it, as a program's indent."""
        return text.rstrip() if self.form == "text" else text.strip()


def _known(rows: Iterable[Row], shots: Shots | None) -> tuple[list[str], list[Row]]:
    """The labels that there are, sorted, and the rows that are shown."""
    labels: set[str] = set()

    def seen() -> Iterator[Row]:
        for row in rows:
            labels.update([row["label"]] if row.get("label") is not None else [])
            yield row

    read = seen()
    shown = shots.draw(read) if shots else []
    for _ in read:
        pass  # whatever was not read for the shots has labels too
    return sorted(labels), shown
