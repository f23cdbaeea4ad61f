"""Likelihood ranking: of several continuations of a text, which one the model finds likeliest."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth.config import EXECUTION, ModelRef
from tilth.data.schema import Row, original
from tilth.data.transform import Inputs, RowsFunction, Transform
from tilth.evaluate.tasks.base import Pass, Task, told_by
from tilth.evaluate.tasks.prompting import Shots
from tilth.generate.base import LocalModel
from tilth.generate.choosing import Choosing, Said
from tilth.generate.render import joined

if TYPE_CHECKING:
    from tilth.data.transform import Fitted
    from tilth.generate.base import Generator


class Ranking(Choosing, Transform):
    """Adds to each row the likeliest choice as `prediction`, its share of the choices' likelihood as `confidence`.

    With `probabilities`, those of all choices are told.
    """

    model: ModelRef | LocalModel = Field(description="@stage, a hub name or a directory; or a generator that holds it.")
    shots: Shots | None = Field(None, description="Answered rows that are shown first.")
    probabilities: bool = Field(False, description="Whether the shares of all choices are told.")
    dtype: Literal["float32", "auto"] = Field("float32", description="Number format of the weights.")
    batch_tokens: int = Field(2048, ge=1, json_schema_extra=EXECUTION, description="Padded tokens of a forward pass.")

    @property
    def in_flight(self) -> int:
        return 1 if isinstance(self.model, str) else self.model.in_flight

    def fit(self, rows: Iterable[Row], inputs: Inputs) -> Fitted:
        """The labels that there are, and the shots."""
        import numpy as np

        known = list(rows)
        labels = sorted({row["label"] for row in known if row.get("label") is not None})
        shots = self.shots.draw(known) if self.shots else []
        return {"labels": np.array(labels, dtype=str), "shots": np.array([json.dumps(shot) for shot in shots])}

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        from tilth.evaluate.predictor import Wanted, predictions

        wanted = Wanted(keeps_end=True)
        predict = predictions(self.model, inputs, wanted, self.batch_tokens, self.dtype, causal=True)
        labels = fitted["labels"].tolist()
        shots = [json.loads(shot) for shot in fitted["shots"].tolist()]

        def rank(rows: list[Row]) -> list[Row]:
            offered = [self.offered(row, labels) for row in rows]
            parts = [
                part for row, choices in zip(rows, offered, strict=True) for part in self._parts(row, choices, shots)
            ]
            found = iter(predict(parts))
            return [
                self._ranked(row, choices, [next(found)["meta"] for _ in choices])
                for row, choices in zip(rows, offered, strict=True)
            ]

        return rank

    def _parts(self, row: Row, choices: list[str], shots: list[Row]) -> list[Row]:
        """A row for each choice, to be scored after what it continues."""
        own = [(shot, self.offered(shot, choices)) for shot in shots]
        shown = [joined(self.question(shot, offered), self.right(shot, offered)) for shot, offered in own]
        before = "\n\n".join([*shown, self.question(row, choices)])
        found = []
        for choice in choices:
            text = joined(before, choice)
            found.append(original(row["id"], row["split"], {"prompt": before, "completion": text[len(before) :]}))
        return found

    def _ranked(self, row: Row, choices: list[str], found: list[dict[str, Any]]) -> Row:
        shares = self.shares(choices, [Said(each["nll"], each["tokens"]) for each in found])
        best = max(range(len(choices)), key=shares.__getitem__)
        meta = {
            "prediction": choices[best],
            "confidence": round(shares[best], 6),
            **({"probabilities": dict(zip(choices, shares, strict=True))} if self.probabilities else {}),
            "references": [self.right(row, choices)],
            "truncated": any(each["truncated"] for each in found),
        }
        return {**row, "meta": {**row["meta"], **meta}}


class Choices(Choosing, Task):
    """Multiple choice by likelihood (Brown et al. 2020): accuracy, and what else holds of labels.

    What is longer than the model reads loses its beginning, as in lm-evaluation-harness: choices are scored whole.
    The stage's models are read by transformers in the worker; one that needs several GPUs is named in `generators`,
    and vLLM reads the same windows.
    """

    likelihoods: ClassVar[bool] = True

    # a model without weights for its head is refused; long rows lose their beginning
    version: ClassVar[int] = 3

    shots: Shots | None = Field(None, description="Answered rows that are shown first.")

    @property
    def shown(self) -> str | None:
        return self.shots.split if self.shots else None

    def step(self, model: str | Generator, how: Pass) -> Transform:
        fields = {name: getattr(self, name) for name in (*Choosing.model_fields, "shots")}
        return Ranking(
            model=told_by(model), **fields, probabilities=self.tells_all, dtype=how.dtype, batch_tokens=how.batch_tokens
        )
