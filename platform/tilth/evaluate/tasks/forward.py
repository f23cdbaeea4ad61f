"""What a model says in a forward pass: labels, tags, spans, or how likely it finds a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tilth.data.transform import Transform
from tilth.evaluate.predict import Predict
from tilth.evaluate.tasks.base import Pass, Task, told_by

if TYPE_CHECKING:
    from tilth.generate.base import Generator


class Forward(Task):
    """The score follows from what the model is: a classifier, a tagger, one that answers by spans, a language model.

    The stage's models are read by transformers in the worker. A language model may be named in `generators` instead,
    as one that needs several GPUs must be; it finds texts as likely there, up to the number format.
    """

    likelihoods: ClassVar[bool] = True
    # a model without weights for its head is refused; bytes of an encoder-decoder are those of the text
    version: ClassVar[int] = 3

    stride: int | None = Field(
        None,
        ge=1,
        description="Tokens between the windows in which longer texts are read; none: they are cut, and language "
        "models that cut them differently are not compared.",
    )

    def step(self, model: str | Generator, how: Pass) -> Transform:
        return Predict(
            model=told_by(model), stride=self.stride, probabilities=self.tells_all, dtype=how.dtype,
            batch_tokens=how.batch_tokens,
        )  # fmt: skip
