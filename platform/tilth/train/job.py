"""One training run as plain, picklable data: what the driver hands to every worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilth.data.transform import Inputs
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.train.base import Training

RESULT = "result.json"
FAILED = "failed.json"
PROGRESS = "progress.json"
BEST = "best"
RANGE = "range_test.json"


@dataclass(frozen=True)
class Job:
    """A stage, what it reads and where it writes."""

    name: str
    stage: Training
    fingerprint: str
    out: Store
    data: Store
    row_type: str
    objective: str
    labels: tuple[str, ...]
    conditioned: bool
    inputs: Inputs
    #: URIs of finished jobs whose models are laid beside this one's, as the members of an ensemble
    members: tuple[str, ...] = ()

    @property
    def leaves(self) -> str:
        """The objective of the model that is left: what learns from preferences is a language model."""
        return "language_model" if self.objective in ("preference", "unpaired", "feedback") else self.objective

    @property
    def base(self) -> str:
        """The model below, as `Card.base` names it."""
        name = self.stage.model.name
        return f"{self.inputs.urls[name]}/model" if name in self.inputs.urls else str(name)

    @property
    def base_identity(self) -> str:
        """The state of the model below that the fingerprint took; empty for a stage's."""
        return self.inputs.pins.get(self.stage.model.name, "")
