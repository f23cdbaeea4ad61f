"""Where a part of learning from feedback runs: in the learners, or in Ray actors of its own. Light configs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tilth.config import EXECUTION, Component
from tilth.nodes import Nodes, Workers


class Placed(Component):
    """A part that runs in each learner, or beside them."""

    placement: Literal["colocate", "disaggregate"] = Field(
        "colocate",
        json_schema_extra=EXECUTION,
        description="colocate: in each learner; disaggregate: in Ray actors of their own.",
    )
    actors: int = Field(1, ge=1, json_schema_extra=EXECUTION, description="Ray actors, when disaggregated.")
    cpus: float = Field(1.0, gt=0, json_schema_extra=EXECUTION, description="CPU cores for each of them.")
    gpus: float = Field(0.0, ge=0, json_schema_extra=EXECUTION, description="GPUs for each of them.")
    nodes: Nodes = Field(Nodes(), json_schema_extra=EXECUTION, description="Which nodes they may run on.")

    @property
    def apart(self) -> bool:
        """Whether it has actors of its own."""
        return self.placement == "disaggregate"

    def actors_of(self, learners: int) -> int:
        """How many actors so many learners start together: each has the same number, and one at least."""
        return learners * max(1, self.actors // learners) if self.apart else 0

    def workers_of(self, learners: int) -> Workers:
        """The same, and what each of them takes."""
        return Workers(self.nodes.each(self.cpus, self.gpus), self.actors_of(learners), self.nodes.selector)

    @property
    def options(self) -> dict[str, Any]:
        """Options of a Ray actor, which is placed wherever there is room, and not among the learners."""
        return {**self.nodes.options(self.cpus, self.gpus), "scheduling_strategy": "DEFAULT"}

    @property
    def device(self) -> str:
        """Where one of its actors holds a model."""
        return "cuda" if self.gpus else "cpu"


class Scoring(Placed):
    """Where rewards and gold rewards are computed.

    Disaggregated, completions are scored while the learners look at them. A reference that is a model of its own is
    there as well, so that learners hold no copy of it; below an adapter it is the learner's own weights, and stays.
    """
