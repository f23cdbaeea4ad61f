"""Transforms: components on rows. An author writes one method; the framework puts it on Ray Data.

The contract of the function that `load` returns: it takes the rows of one unit and returns the same rows
(each exactly once, `reason` set on those it drops) and any rows that it adds, each with `parent`, `via`,
`seed`. Rows that already carry a reason are passed through. Random numbers come from `row_rng`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from tilth.config import EXECUTION, Component
from tilth.data.schema import Row
from tilth.nodes import Nodes

if TYPE_CHECKING:
    import numpy as np

    from tilth.runs import Artifact

    Fitted = dict[str, np.ndarray[Any, Any]]

RowsFunction = Callable[[list[Row]], list[Row]]


@dataclass(frozen=True)
class Inputs:
    """What a transform may refer to, picklable: where each "@stage" of its config lies, and which models it names."""

    urls: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: the identity of each model that the fingerprint took
    pins: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(artifacts: Mapping[str, Artifact], pins: Mapping[str, str] | None = None) -> Inputs:
        return Inputs(
            {ref: item.store.url for ref, item in artifacts.items()},
            {ref: item.detail for ref, item in artifacts.items()},
            dict(pins or {}),
        )

    def model(self, model: str) -> Path:
        """A local directory with the model: a hub name or directory, or "@stage" (its `model/` directory).

        Of a model that the fingerprint names, the very state that it names; ModelError where that is not to be had.
        """
        from tilth import models
        from tilth.storage import Store

        if model not in self.urls:
            pin = self.pins.get(model)
            folder: Path = models.resolve(model) if pin is None else models.planned(model, pin)
            return folder
        return Store(self.urls[model]).fetch("model")


class Resources(Component):
    """Where a stage's workers run. Never part of its identity."""

    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        json_schema_extra=EXECUTION,
        description="How many; auto: one per GPU share or CPU; 0: no Ray, in process.",
    )
    cpus: float = Field(1.0, gt=0, json_schema_extra=EXECUTION, description="CPU cores for each worker.")
    gpus: float = Field(0.0, ge=0, json_schema_extra=EXECUTION, description="GPUs for each worker; may be a share.")
    nodes: Nodes = Field(Nodes(), json_schema_extra=EXECUTION, description="Which nodes workers may run on.")

    @property
    def each(self) -> dict[str, float]:
        """What one worker takes, as Ray names resources."""
        return self.nodes.each(self.cpus, self.gpus)

    @property
    def options(self) -> dict[str, Any]:
        """The same as options of a Ray task or actor, with the nodes that it may run on."""
        return self.nodes.options(self.cpus, self.gpus)

    def count(self, available: Mapping[str, float]) -> int:
        """Workers for nodes that have these resources together."""
        if isinstance(self.workers, int):
            return self.workers
        if self.gpus:
            return max(1, int(available.get("GPU", 0) / self.gpus))
        return max(1, int(available.get("CPU", 1) / self.cpus))


def _in_a_pool(resources: Resources | None) -> Resources | None:
    if resources is not None and resources.workers == 0:
        raise ValueError("workers of its own are processes: give 1 or more, or set the stage's workers to 0")
    return resources


class Transform(Component, family="transform"):
    """A component on rows."""

    #: whether it looks at the parents of rows, which then stand beside them also while a row that raises is looked for
    sees_parents: ClassVar[bool] = True

    resources: Annotated[Resources | None, AfterValidator(_in_a_pool)] = Field(
        None,
        json_schema_extra=EXECUTION,
        description="Workers of its own, which go on with what those before it left; none: the stage's. Each change "
        "from one step to the next makes a pool.",
    )

    @property
    def in_flight(self) -> int:
        """Rows that one worker should have in flight, in units computed at once.

        Above 1 the function that `load` returns must be thread-safe; of the others one call runs at a time.
        """
        return 1

    def columns(self) -> dict[str, str]:
        """The payload columns that it works on, by the field of its config that names each."""
        column = getattr(self, "field", None)
        return {} if column is None else {"field": column}

    def fit(self, rows: Iterable[Row], inputs: Inputs) -> Fitted:
        """Look at the whole dataset once, before any unit (all splits, originals): arrays to hand to `load`."""
        return {}

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        """The function on rows, called once in each worker: load models here."""
        raise TypeError(f"{type(self).__name__} must define load()")

    def decide(self, rows: Iterable[Row], inputs: Inputs) -> dict[str, str]:
        """Reasons by row id, from a look at all rows of the job together, after every unit (global duplicates)."""
        return {}
