"""What a search goes by: figures of artifacts, written STAGE/FIGURE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tilth.config import Component, Ref
from tilth.errors import StageError
from tilth.problems import nearest

if TYPE_CHECKING:
    from tilth.runs import Artifact


class MeasureRef(Ref):
    """A figure of another stage, written "stage/figure": what measures it has to run first."""

    @property
    def stage(self) -> str:
        return self.partition("/")[0]


def _measure(text: str) -> str:
    return MeasureRef(text) if "/" in text.strip("/") else text


Measure = Annotated[str, Field(min_length=1), AfterValidator(_measure)]


class Objective(Component):
    """A figure of which less or more is better."""

    metric: Measure = Field(description="STAGE/FIGURE, or a figure of the searched stage itself.")
    mode: Literal["min", "max"] = Field("max", description="Whether less of it is better, or more.")

    @property
    def sign(self) -> int:
        """Times its figure, more is better."""
        return 1 if self.mode == "max" else -1


def home(stage: str, metric: str) -> str:
    """The stage that measures `metric`, where `stage` is searched."""
    return metric.stage if isinstance(metric, Ref) else stage


def measured(artifacts: Mapping[str, Artifact], stage: str, metric: str) -> float:
    """The figure that `metric` names among artifacts by stage.

    It is one of the artifact's metrics, by its name or by a part of it behind a "/" that no other ends with;
    `seconds`; or a dotted path in its detail, such as `parameters.trainable`. StageError where there is none, or where
    it is no finite number.
    """
    artifact = artifacts[home(stage, metric)]
    figure = metric.partition("/")[2] if isinstance(metric, Ref) else metric
    value = _figure(artifact, figure)
    if isinstance(value, bool) or not isinstance(value, int | float):
        known = [name for name in artifact.metrics if not name.endswith(("_low", "_high", "_p"))]
        raise StageError(f"{artifact.stage} measures no {figure!r}; {nearest(figure, [*known, 'seconds'])}")
    if not math.isfinite(value):
        raise StageError(f"{artifact.stage}: {figure} is {value}")
    return float(value)


def _figure(artifact: Artifact, figure: str) -> Any:
    if figure in artifact.metrics:
        return artifact.metrics[figure]
    if figure == "seconds":
        return artifact.seconds
    ends = [name for name in artifact.metrics if name.endswith(f"/{figure}")]
    if len(ends) == 1:
        return artifact.metrics[ends[0]]
    here: Any = artifact.detail
    for key in figure.split("."):
        here = here.get(key) if isinstance(here, dict) else None
    return here
