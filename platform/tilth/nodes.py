"""Which nodes of a cluster a stage's workers may run on, and what each of them takes there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from tilth.config import Component
from tilth.errors import Problem

#: the labels that Ray gives nodes by itself; the second where the pod or machine has RAY_NODE_MARKET_TYPE
ACCELERATOR, MARKET = "ray.io/accelerator-type", "ray.io/market-type"
# equality alone: Ray's other forms, such as "!in(a, b)", could not be told from a name that no node has
_Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
_Key = Annotated[str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]


class Nodes(Component):
    """What a node must be and have for a worker to be put there."""

    accelerator: _Label | None = Field(None, description='GPU type as Ray names it: "H100", "A100-80G", "L4".')
    spot: bool | None = Field(
        None, description="true: nodes that may be taken away, which cost less; false: none of these; null: any."
    )
    labels: dict[_Key, _Label] = Field({}, description="Further node labels, by name.")
    memory_gib: float | None = Field(None, gt=0, description="Main memory in GiB that is kept free for each worker.")

    def check(self) -> list[Problem]:
        return [
            Problem(f"labels.{name}", f"{field} says that already", f"leave the label out and set {field}")
            for name, field in ((ACCELERATOR, "accelerator"), (MARKET, "spot"))
            if name in self.labels
        ]

    @property
    def selector(self) -> dict[str, str]:
        """The labels that a node must have."""
        found = dict(self.labels)
        if self.accelerator is not None:
            found[ACCELERATOR] = self.accelerator
        if self.spot is not None:
            found[MARKET] = "spot" if self.spot else "on-demand"
        return found

    def each(self, cpus: float, gpus: float) -> dict[str, float]:
        """What one worker takes, as Ray names resources; memory in bytes."""
        memory = 0.0 if self.memory_gib is None else self.memory_gib * 2**30
        return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus), ("memory", memory)) if amount}

    def options(self, cpus: float, gpus: float) -> dict[str, Any]:
        """The same and the labels, as options of a Ray task or actor."""
        found: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
        if self.memory_gib is not None:
            found["memory"] = int(self.memory_gib * 2**30)
        if self.selector:
            found["label_selector"] = self.selector
        return found


@dataclass(frozen=True)
class Workers:
    """Workers that are alike and run at the same time, and what each of them takes, as Ray names resources."""

    each: Mapping[str, float]
    count: int = 1
    #: which a node must have
    labels: Mapping[str, str] = field(default_factory=dict)
    #: with how many they go on while nodes are missing; None: with all of them
    fewest: int | None = None

    @property
    def least(self) -> int:
        return self.count if self.fewest is None else self.fewest

    @property
    def total(self) -> dict[str, float]:
        return {name: amount * self.count for name, amount in self.each.items()}
