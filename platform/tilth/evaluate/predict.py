"""What a trained model says about rows, as a transform: it runs, commits and resumes like any data stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tilth.config import EXECUTION, ModelRef
from tilth.data.schema import Row
from tilth.data.transform import Inputs, RowsFunction, Transform
from tilth.generate.base import LocalModel

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


class Predict(Transform):
    """Adds to each row's `meta` what the model says; the rows themselves stay.

    A classifier adds `prediction` (a label) and `confidence` (its probability, 0 to 1), where it is told to the
    `probabilities` of all labels, a tagger `prediction` (a tag
    for each word), a model that answers by spans `prediction` (a piece of the context, empty for no answer). A
    language model adds `nll` (summed negative log-likelihood in nats), `tokens` and `bytes` (that it sums over). All
    add `truncated`. A generator is a language model, in its own number format and batches.
    """

    sees_parents: ClassVar[bool] = False

    model: ModelRef | LocalModel = Field(description="@stage, a hub name or a directory; or a generator that holds it.")
    stride: int | None = Field(None, ge=1, description="Tokens between windows of long texts; none: they are cut.")
    probabilities: bool = Field(False, description="Whether a classifier tells those of all labels.")
    dtype: Literal["float32", "auto"] = Field(
        "float32", description="float32: the same score however rows are batched; auto: as the weights are stored."
    )
    batch_tokens: int = Field(
        2048, ge=1, json_schema_extra=EXECUTION, description="Padded tokens of one forward pass; bounds memory."
    )

    @property
    def in_flight(self) -> int:
        return 1 if isinstance(self.model, str) else self.model.in_flight

    def fit(self, rows: Iterable[Row], inputs: Inputs) -> Fitted:
        """Whether some question has no answer: only then may a model give none."""
        import numpy as np

        nulls = False
        for row in rows:
            if row.get("answers") is None:
                break  # no rows of questions
            nulls = nulls or not row["answers"]
        return {"nulls": np.array([nulls])}

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        from tilth.evaluate.predictor import Wanted, predictions

        nulls = bool(fitted["nulls"][0]) if "nulls" in fitted else False
        wanted = Wanted(self.stride, nulls=nulls, probabilities=self.probabilities)
        return predictions(self.model, inputs, wanted, self.batch_tokens, self.dtype)
