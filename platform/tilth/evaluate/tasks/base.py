"""The family of tasks of an evaluation.

| kind       | what a model does with a row                                    | models                        |
|------------|-----------------------------------------------------------------|-------------------------------|
| forward    | says what it was trained to say, or how likely it finds the row | directories, hub names, stages |
| generation | writes an answer to a prompt, zero-shot or few-shot              | the same, and any generator   |
| choices    | finds one of several continuations likeliest                    | causal language models        |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tilth.config import Component
from tilth.data.schema import Row
from tilth.data.transform import Transform
from tilth.errors import Problem
from tilth.evaluate.measures.base import Metric

if TYPE_CHECKING:
    from tilth.generate.base import Generator


@dataclass(frozen=True)
class Pass:
    """How forward passes run, as the stage says."""

    dtype: Literal["float32", "auto"] = "float32"
    batch_tokens: int = 2048


class Task(Component, family="task"):
    """What models are put to. A kind writes `step`."""

    metrics: tuple[Metric, ...] = Field((), description="What is measured; none: what the rows and models call for.")

    @property
    def asked(self) -> Mapping[str, Generator]:
        """Models that are none of the stage's `models` but generators of their own."""
        return {}

    @property
    def shown(self) -> str | None:
        """The split whose rows a model is shown as examples, None where it is shown none."""
        return None

    @property
    def tells_all(self) -> bool:
        """Whether a metric needs the probabilities of all labels."""
        return any("probabilities" in metric.reads for metric in self.metrics)

    def step(self, model: str | Generator, how: Pass) -> Transform:
        """The transform that adds to each row what a model says."""
        raise TypeError(f"{type(self).__name__} must define step()")

    def told(self, rows: Iterable[Row]) -> dict[str, Any] | None:
        """What makes a question of a row, as `Questions` takes it, so that judges read what models did; else None."""
        return None

    def check(self) -> list[Problem]:
        titles = [metric.title for metric in self.metrics]
        return [
            Problem(f"metrics.{place}", f"{title} is measured already", "leave out one of the two")
            for place, title in enumerate(titles)
            if title in titles[:place]
        ]
