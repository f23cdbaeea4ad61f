"""Stage `harness`: tasks of lm-evaluation-harness on our own models, with intervals and paired tests of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tilth.config import EXECUTION, DataFiles, ModelRef
from tilth.data.memory import in_all_workers, model_bytes
from tilth.data.transform import Resources
from tilth.errors import Problem
from tilth.evaluate.stage import Bootstrap
from tilth.recipe import Stage

if TYPE_CHECKING:
    from tilth.runs import Artifact, Out
    from tilth.weights import Sized


class Harness(Stage):
    """Tasks as lm-evaluation-harness defines them (Gao et al. 2021), run by it on transformers models.

    Models are what training leaves, adapters too, directories and hub names. A task that was scored stays scored when
    the stage is run again. Every figure has a bootstrap interval over documents and, with a baseline, a paired test:
    means over documents, those of a group, and what the harness aggregates otherwise, as F1 or perplexity. The data of
    most tasks comes from the hub; `include` names tasks of one's own.
    """

    produces: ClassVar[str] = "report"
    version: ClassVar[int] = 5  # figures that are no mean, and groups, of groups too, have intervals

    models: dict[str, ModelRef] = Field(min_length=1, description="Name in the report → @stage, hub name or directory.")
    tasks: tuple[str, ...] = Field(min_length=1, description="Tasks or groups, as lm-evaluation-harness calls them.")
    include: DataFiles | None = Field(None, description="Files of further tasks, YAML as it reads them: tasks/*.yaml.")
    shots: int | None = Field(None, ge=0, description="Examples shown; none: as each task says.")
    limit: int | None = Field(None, ge=1, description="Documents of each task at most; none: all.")
    form: Literal["text", "chat"] = Field("text", description="Asked as texts, or in the model's chat template.")
    baseline: str | None = Field(None, description="The model that the others are compared to; one of `models`.")
    bootstrap: Bootstrap = Field(default_factory=Bootstrap, description="Intervals and tests.")
    dtype: Literal["float32", "auto"] = Field("float32", description="Number format of the weights.")
    batch_size: int = Field(8, ge=1, json_schema_extra=EXECUTION, description="Sequences of one forward pass.")
    resources: Resources = Field(
        default_factory=Resources, json_schema_extra=EXECUTION, description="Where a model runs; one after another."
    )

    def check(self) -> list[Problem]:
        return list(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if find_spec("lm_eval") is None:
            yield Problem("kind", "lm-evaluation-harness is not installed", "install tilth[harness]")
        if self.baseline is not None and self.baseline not in self.models:
            fits = ", ".join(self.models)
            yield Problem("baseline", f"{self.baseline!r} is none of the models", f"use one of: {fits}")

    def memory(self, sized: Sized) -> float | None:
        """Of the largest model: one is loaded after another."""
        found = model_bytes(self, sized, self.resources)
        return in_all_workers(max(found.values()), self.resources) if found else None

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        """Score every model on every task; StageError for a task that is not known or whose data is not to be had."""
        from tilth.evaluate.harnessing import harness

        return harness(self, out, inputs)
