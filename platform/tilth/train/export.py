"""A trained model as others load it: an adapter merged into its base, with a card, in plain safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tilth.config import ModelRef
from tilth.recipe import Stage

if TYPE_CHECKING:
    from tilth.runs import Artifact, Out


class Export(Stage):
    """Leaves `model/`, which transformers and vLLM load without Tilth and without PEFT.

    An adapter needs no export: what its stage left is what PEFT reads.
    """

    produces: ClassVar[str] = "model"

    model: ModelRef = Field(description='"@stage" of the trained model, or a directory.')
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights; auto: as they are."
    )

    @property
    def made_from(self) -> str:
        return self.model

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        from tilth.data.transform import Inputs
        from tilth.train.merge import merge

        made = inputs.get(self.model)
        parameters = merge(self.model, self.dtype, out.store, Inputs.of(inputs, out.pins))
        detail = {**(made.detail if made else {}), "base": str(self.model), "peft": None, "parameters": parameters}
        return out.artifact(metrics=made.metrics if made else {}, detail=detail)
