"""Several tasks at once: how often each is seen, how much it counts, and what becomes of conflicts between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from tilth.config import Component
from tilth.errors import Problem, StageError
from tilth.train.config import Scale
from tilth.train.conflict import Conflict
from tilth.train.sampling import Proportional, Sampling
from tilth.train.weighting import Unweighted, Weighting


class Tasks(Component):
    """Training on rows of several tasks, told apart by their column `task` as stage `mix` fills it.

    The optimizer's steps are as many as in plain training; which rows they see follows from `sampling`, and a task's
    rows are all seen before any is seen again.
    """

    sampling: Sampling = Field(Proportional(), description="How often each task is seen.")
    weighting: Weighting = Field(Unweighted(), description="How much the loss of each task counts.")
    conflict: Conflict | None = Field(
        None, description="What becomes of conflicting gradients; null: no gradient of a single task is looked at."
    )

    @property
    def separate(self) -> bool:
        """Whether every task's gradient is taken by itself."""
        return self.conflict is not None or self.weighting.needs_norms

    def unfit(self, scale: Scale) -> list[Problem]:
        """What is wrong with the workers, where tasks need whole gradients."""
        if not (self.separate and scale.deepspeed):
            return []
        asks = f"conflict {self.conflict.kind}" if self.conflict else f"weighting {self.weighting.kind}"
        what = f"reduces or partitions gradients before {asks} can compare those of single tasks"
        mend = "leave deepspeed out (DDP holds what ZeRO 0 holds), or leave out what compares gradients"
        return [Problem("scale.deepspeed", what, mend)]

    def refuse(self, name: str, counts: Mapping[str | None, int]) -> None:
        """StageError where the training rows, counted by task, are not those of the recipe's tasks."""
        if counts.get(None):
            raise StageError(
                f"{name}: {counts[None]:,} training rows name no task; join datasets by a stage of kind mix, or leave "
                "out tasks"
            )
        tasks = {task for task in counts if task is not None}
        if len(tasks) < 2:
            raise StageError(f"{name}: tasks needs two tasks or more, the rows are all of {', '.join(tasks)}")
        odd = self.sampling.missing(tasks) | self.weighting.missing(tasks)
        if odd:
            raise StageError(
                f"{name}: tasks must name the tasks of the data, {', '.join(sorted(tasks))}; look at "
                f"{', '.join(sorted(odd))}"
            )


def metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each task in a trace: its mean loss over the last tenth of the steps, its mean weight, its share of rows.

    And the mean cosine between the gradients of two tasks, where they were taken.
    """
    told = [line for line in lines if line.get("tasks")]
    late = told[-max(1, len(told) // 10) :]
    rows = sum(item["rows"] for line in told for item in line["tasks"].values())
    found: dict[str, float] = {}
    for task in dict.fromkeys(task for line in told for task in line["tasks"]):
        seen = [line["tasks"][task] for line in told if task in line["tasks"]]
        found[f"loss/{task}"] = _mean(line["tasks"][task]["loss"] for line in late if task in line["tasks"])
        found[f"weight/{task}"] = _mean(item["weight"] for item in seen)
        found[f"rows/{task}"] = round(sum(item["rows"] for item in seen) / rows, 4)
    pairs = [cosine for line in told for cosine in between(line.get("conflict"))]
    return found | ({"cosine": _mean(pairs), "conflicting": _mean(c < 0 for c in pairs)} if pairs else {})


def between(conflict: Mapping[str, Any] | None) -> list[float]:
    """The cosines of a step, one for each two tasks that it saw."""
    matrix = conflict["cosines"] if conflict else []
    return [value for i, row in enumerate(matrix) for value in row[:i] if value is not None]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return round(sum(found) / len(found), 6) if found else 0.0
