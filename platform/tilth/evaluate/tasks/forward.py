"""What a model says in a forward pass: labels, tags, spans, or how likely it finds a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tilth.data.transform import Transform
from tilth.errors import StageError
from tilth.evaluate.predict import Predict
from tilth.evaluate.tasks.base import Pass, Task

if TYPE_CHECKING:
    from tilth.generate.base import Generator


class Forward(Task):
    """The score follows from what the model is: a classifier, a tagger, one that answers by spans, a language model."""

    version: ClassVar[int] = 2  # a model without weights for its head is refused

    stride: int | None = Field(
        None,
        ge=1,
        description="Tokens between the windows in which longer texts are read; none: they are cut, and language "
        "models that cut them differently are not compared.",
    )

    def step(self, model: str | Generator, how: Pass) -> Transform:
        if not isinstance(model, str):
            raise StageError("a forward pass needs the model itself, not a generator; use the task generation")
        return Predict(
            model=model, stride=self.stride, probabilities=self.tells_all, dtype=how.dtype,
            batch_tokens=how.batch_tokens,
        )  # fmt: skip
