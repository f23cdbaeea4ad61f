"""The family of tasks of an evaluation.

| kind       | what a model does with a row                                    | models                        |
|------------|-----------------------------------------------------------------|-------------------------------|
| forward    | says what it was trained to say, or how likely it finds the row | directories, hub names, stages |
| generation | writes an answer to a prompt, zero-shot or few-shot              | the same, and any generator   |
| choices    | finds one of several continuations likeliest                    | causal language models        |

Causal language models of `forward` and `choices` may also be generators that hold the model themselves, such as vLLM
over several GPUs: these tell how likely it finds a text, which no server and no rule does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from tilth.config import Component
from tilth.data.schema import Row
from tilth.data.transform import Transform
from tilth.errors import Problem, StageError
from tilth.evaluate.measures.base import Metric
from tilth.generate.base import Generator, LocalModel


@dataclass(frozen=True)
class Pass:
    """How forward passes run, as the stage says."""

    dtype: Literal["float32", "auto"] = "float32"
    batch_tokens: int = 2048


class Task(Component, family="task"):
    """What models are put to. A kind writes `step`."""

    #: whether it needs to be told how likely a model finds a text: of generators, those do that hold the model
    likelihoods: ClassVar[bool] = False

    metrics: tuple[Metric, ...] = Field((), description="What is measured; none: what the rows and models call for.")
    generators: dict[str, Generator] = Field(default_factory=dict, description="Further models, by name.")

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
        twice = [
            Problem(f"metrics.{place}", f"{title} is measured already", "leave out one of the two")
            for place, title in enumerate(titles)
            if title in titles[:place]
        ]
        return [*twice, *(self._silent() if self.likelihoods else ())]

    def _silent(self) -> Iterator[Problem]:
        for name, generator in self.generators.items():
            if not isinstance(generator, LocalModel):
                mend = "use kind vllm or hf, which hold the model, or the task generation"
                yield Problem(f"generators.{name}", f"{_untold(generator)}, as the task {self.kind} needs", mend)
            elif generator.system:
                what = "is put before no text whose likelihood is asked for"
                yield Problem(f"generators.{name}.system", what, "leave it out, or write it into the rows")


def told_by(model: str | Generator) -> str | LocalModel:
    """The model, where it tells how likely it finds a text; StageError for a generator that does not."""
    if isinstance(model, str | LocalModel):
        return model
    raise StageError(f"{_untold(model)}; use kind vllm or hf, which hold the model, or the task generation")


def _untold(generator: Generator) -> str:
    return f"kind {generator.kind} answers, but does not tell how likely it finds a text"
