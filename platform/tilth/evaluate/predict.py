"""What a trained model says about rows, as a transform: it runs, commits and resumes like any data stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tilth.config import EXECUTION, ModelRef
from tilth.data.transform import Inputs, RowsFunction, Transform

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


class Predict(Transform):
    """Adds to each row's `meta` what the model says; the rows themselves stay.

    A classifier adds `prediction` (a label) and `confidence` (its probability, 0 to 1). A language model adds
    `nll` (summed negative log-likelihood in nats), `tokens` (that it sums over) and `truncated`.
    """

    model: ModelRef = Field(description="The model: @stage, a hub name or a directory.")
    dtype: Literal["float32", "auto"] = Field(
        "float32", description="float32: the same score however rows are batched; auto: as the weights are stored."
    )
    batch_tokens: int = Field(
        2048, ge=1, json_schema_extra=EXECUTION, description="Padded tokens of one forward pass; bounds memory."
    )

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        from tilth.evaluate.predictor import Predictor

        return Predictor(inputs.model(self.model), batch_tokens=self.batch_tokens, dtype=self.dtype).predict
