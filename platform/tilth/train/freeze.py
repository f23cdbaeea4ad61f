"""Partial fine-tuning: which weights of a model stay as they are, and when more of them are trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from tilth.config import Component
from tilth.errors import Problem

_BLOCK = re.compile(r"\.(\d+)\.")
_EMBEDDINGS = re.compile(r"embed|wte|wpe|shared|relative_attention_bias")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise PydanticCustomError("pattern", "must be a regular expression: {why}", {"why": str(error)}) from error
    return text


class Freeze(Component):
    """Weights that are not trained. What is new in the model, such as a head, always is, unless a name says so.

    Blocks are counted from the embeddings up; of an encoder-decoder both halves. With `thaw_steps` the topmost
    frozen block is trained again every so many steps, then the embeddings: gradual unfreezing, Howard & Ruder 2018,
    arXiv:1801.06146.
    """

    blocks: tuple[int, int] | None = Field(
        None, description="Transformer blocks from the first number up to, not with, the second, as Python counts."
    )
    embeddings: bool = Field(False, description="The embeddings of tokens and positions.")
    names: tuple[Annotated[str, AfterValidator(_pattern)], ...] = Field(
        (), description="Weights in whose name one of these regular expressions is found."
    )
    thaw_steps: int | None = Field(None, ge=1, description="Steps until the topmost frozen block is trained again.")

    def check(self) -> list[Problem]:
        if self.blocks is None and not self.embeddings and not self.names:
            return [Problem("", "freezes nothing", "name blocks, embeddings or names, or leave freeze out")]
        if self.thaw_steps and self.blocks is None:
            return [Problem("thaw_steps", "there are no frozen blocks to train again", "name blocks, such as [0, 8]")]
        return []

    def count(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """About how many weights are never trained, of tensors with these names and shapes; none that thaw later."""
        numbers = {name: int(found[1]) for name in shapes if (found := _BLOCK.search(name))}
        frozen = set(range(max(numbers.values(), default=-1) + 1)[slice(*self.blocks)]) if self.blocks else set()

        def kept(name: str) -> bool:
            for_now = numbers.get(name) in frozen or (self.embeddings and _EMBEDDINGS.search(name) is not None)
            return (for_now and not self.thaw_steps) or any(re.search(pattern, name) for pattern in self.names)

        return sum(math.prod(shape) for name, shape in shapes.items() if kept(name))
