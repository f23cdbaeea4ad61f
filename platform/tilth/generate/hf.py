"""Generation by transformers in the worker: for models and machines that vLLM does not serve."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tilth.config import EXECUTION
from tilth.data.transform import Inputs
from tilth.generate.base import Generate, Likelihood, LocalModel


class HuggingFace(LocalModel):
    """`generate` of transformers, batched by tokens.

    Each completion draws its own random numbers, so that a row gives the same text whatever batch it is in: to the
    last bit of the scores in float32, where one token in a million may still tip over; far less surely in half
    precision, whose sums depend on the shape of a batch.
    """

    version: ClassVar[int] = 2  # stop texts that are special tokens end a text

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: float32 on a CPU, where half precision is slow and makes texts depend on their batch; "
        "on a GPU as the weights are stored.",
    )
    batch_tokens: int = Field(
        8192,
        ge=64,
        json_schema_extra=EXECUTION,
        description="Tokens of prompts and longest completions in a batch; halved when memory runs out.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", json_schema_extra=EXECUTION, description="Where it runs.")

    def load(self, inputs: Inputs) -> Generate:
        from tilth.generate.engines.transformers import TransformersEngine

        return TransformersEngine(self, inputs.model(self.model))

    def load_likelihood(self, inputs: Inputs) -> Likelihood:
        from tilth.generate.engines.likelihood import transformers_likelihood

        return transformers_likelihood(self, inputs.model(self.model))
