"""Likelihood ranking: of several continuations of a text, which one the model finds likeliest."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tilth.config import EXECUTION, ModelRef
from tilth.data.schema import Row, original, value_at
from tilth.data.transform import Inputs, RowsFunction, Transform
from tilth.errors import Problem, StageError
from tilth.evaluate.tasks.base import Pass, Task
from tilth.evaluate.tasks.prompting import Questions, Shots, joined, template_problems

if TYPE_CHECKING:
    from tilth.data.transform import Fitted
    from tilth.generate.base import Generator

_PROMPT = "{{ text }}\nLabel:"


class Ranking(Transform):
    """Adds to each row the likeliest choice as `prediction`, its share of the choices' likelihood as `confidence`."""

    model: ModelRef = Field(description="The model: @stage, a hub name or a directory.")
    prompt: str = Field(_PROMPT, description="Jinja template of what the choices continue.")
    choices: str | None = Field(None, description="Dotted path of the row's choices; none: all labels of the data.")
    reference: str | None = Field(None, description="Dotted path of the right one, or its place; none: the label.")
    length: Literal["none", "tokens", "characters"] = Field(
        "characters", description="What log-likelihoods are divided by."
    )
    shots: Shots | None = Field(None, description="Answered rows that are shown first.")
    dtype: Literal["float32", "auto"] = Field("float32", description="Number format of the weights.")
    batch_tokens: int = Field(2048, ge=1, json_schema_extra=EXECUTION, description="Padded tokens of a forward pass.")

    def fit(self, rows: Iterable[Row], inputs: Inputs) -> Fitted:
        """The labels that there are, and the shots."""
        import numpy as np

        known = list(rows)
        labels = sorted({row["label"] for row in known if row.get("label") is not None})
        shots = self.shots.draw(known) if self.shots else []
        return {"labels": np.array(labels, dtype=str), "shots": np.array([json.dumps(shot) for shot in shots])}

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        from tilth.evaluate.predictor import Predictor

        predictor = Predictor(inputs.model(self.model), batch_tokens=self.batch_tokens, dtype=self.dtype)
        if predictor.loaded.objective != "language_model":
            raise StageError(f"{self.model} is no causal language model; choices are ranked by their likelihood in one")
        labels = fitted["labels"].tolist()
        shots = [json.loads(shot) for shot in fitted["shots"].tolist()]

        def rank(rows: list[Row]) -> list[Row]:
            offered = [self._choices(row, labels) for row in rows]
            asked = [
                part for row, choices in zip(rows, offered, strict=True) for part in self._parts(row, choices, shots)
            ]
            found = iter(predictor.predict(asked))
            return [
                self._ranked(row, choices, [next(found)["meta"] for _ in choices])
                for row, choices in zip(rows, offered, strict=True)
            ]

        return rank

    def _choices(self, row: Row, labels: list[str]) -> list[str]:
        found = labels if self.choices is None else value_at(row, self.choices)
        if not isinstance(found, list) or len(found) < 2:
            where = "the data's labels" if self.choices is None else self.choices
            raise StageError(f"row {row['id']}: {where} must be two choices or more, not {found!r}")
        return [str(choice) for choice in found]

    def _parts(self, row: Row, choices: list[str], shots: list[Row]) -> list[Row]:
        """A row for each choice, to be scored after what it continues."""
        questions = Questions(self.prompt, None, tuple(choices))
        shown = [joined(questions.question(shot), self._right(shot, self._choices(shot, choices))) for shot in shots]
        before = "\n\n".join([*shown, questions.question(row)])
        found = []
        for choice in choices:
            text = joined(before, choice)
            found.append(original(row["id"], row["split"], {"prompt": before, "completion": text[len(before) :]}))
        return found

    def _right(self, row: Row, choices: list[str]) -> str:
        found = row.get("label") if self.reference is None else value_at(row, self.reference)
        if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < len(choices):
            return choices[found]
        if found is None or str(found) not in choices:
            raise StageError(f"row {row['id']}: {found!r} at {self.reference or 'label'} is none of its choices")
        return str(found)

    def _ranked(self, row: Row, choices: list[str], found: list[dict[str, Any]]) -> Row:
        sizes = {"characters": [len(choice) for choice in choices], "tokens": [said["tokens"] for said in found]}
        each = sizes.get(self.length, [1] * len(choices))
        scores = [-said["nll"] / size for said, size in zip(found, each, strict=True)]
        best = max(range(len(choices)), key=scores.__getitem__)
        share = 1 / sum(math.exp(score - scores[best]) for score in scores)
        meta = {
            "prediction": choices[best],
            "confidence": round(share, 6),
            "references": [self._right(row, choices)],
            "truncated": any(said["truncated"] for said in found),
        }
        return {**row, "meta": {**row["meta"], **meta}}


class Choices(Task):
    """Multiple choice by likelihood (Brown et al. 2020): accuracy, and what else holds of labels.

    Choices are the labels of the data, or stand in each row. Their log-likelihoods are compared as they are, or by
    token or byte, which does not favour short ones; lm-evaluation-harness calls `none` acc and `bytes` acc_norm.
    """

    prompt: str = Field(_PROMPT, description="Jinja template over the row's columns, meta and `labels`, its choices.")
    choices: str | None = Field(None, description="Dotted path of the row's choices; none: all labels of the data.")
    reference: str | None = Field(None, description="Dotted path of the right one, or its place; none: the label.")
    length: Literal["none", "tokens", "characters"] = Field(
        "characters", description="What log-likelihoods are divided by."
    )
    shots: Shots | None = Field(None, description="Answered rows that are shown first.")

    @property
    def shown(self) -> str | None:
        return self.shots.split if self.shots else None

    def check(self) -> list[Problem]:
        return [*super().check(), *template_problems(self.prompt)]

    def step(self, model: str | Generator, how: Pass) -> Transform:
        if not isinstance(model, str):
            raise StageError("choices are ranked by the model itself, not by a generator; name it in models")
        fields = {name: getattr(self, name) for name in ("prompt", "choices", "reference", "length", "shots")}
        return Ranking(model=model, **fields, dtype=how.dtype, batch_tokens=how.batch_tokens)
