"""Stage `mix`: several datasets as one, by task, with caps and weights, and tasks held out for zero-shot evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tilth.config import EXECUTION, DatasetRef
from tilth.data.transform import Resources
from tilth.errors import Problem, StageError
from tilth.recipe import Stage

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset
    from tilth.runs import Artifact, Out

# the beginning of every id of the task
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
#: below so many rows, starting Ray takes longer than reading them
FEW_ROWS = 100_000


class Mix(Stage):
    """Datasets of one row type joined: every row once, its `task` the name given here, its id TASK/ID.

    Examples-proportional mixing with a cap (T5: Raffel et al. 2020, arXiv:1910.10683): of each task at most `cap`
    training rows. Weights share out what the caps leave: the heaviest task gives all, one of half its weight half of
    what it has. No row is repeated. Rows are taken by the hash of their root, so that a larger mixture contains the
    smaller one and variants of a row stay together; validation and test rows are all taken.

    A row that shows, but for its label, what a test row of any task shows is dropped from training and validation as
    `duplicate`; from training also one that shows what a validation row does. What was made of it goes with it.

    Tasks of a held-out cluster are never trained on (FLAN: Wei et al. 2022, arXiv:2109.01652): with `held_out_rows:
    test` their test rows stay and the others are dropped as `held_out`, with `all` every row moves to test.
    """

    produces: ClassVar[str] = "dataset"
    version: ClassVar[int] = 2  # what is in test of one task is not in training of another

    data: dict[TaskName, DatasetRef] = Field(min_length=1, description='Task: its dataset, as "@stage".')
    cap: int | None = Field(None, ge=1, description="Training rows of a task at most.")
    caps: dict[str, int] = Field(default_factory=dict, description="Task: its own cap.")
    weights: dict[str, float] = Field(default_factory=dict, description="Task: its weight; 1 where it has none.")
    rows: int | None = Field(None, ge=1, description="Training rows of the mixture at most.")
    held_out: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Cluster: its tasks, which are evaluated and never trained on."
    )
    held_out_rows: Literal["test", "all"] = Field("test", description="What of a held-out task is kept, as test.")
    seed: int = Field(0, ge=0, description="Another seed, another sample.")
    resources: Resources = Field(default_factory=Resources, description="Workers.", json_schema_extra=EXECUTION)

    def check(self) -> list[Problem]:
        return [*self._unknown(), *self._unfit(), *self._repeated()]

    def _unknown(self) -> list[Problem]:
        named = {"caps": tuple(self.caps), "weights": tuple(self.weights)}
        named |= {f"held_out.{cluster}": tasks for cluster, tasks in self.held_out.items()}
        return [
            Problem(where, f"no task is called {task!r}", f"there are: {', '.join(self.data)}")
            for where, tasks in named.items()
            for task in tasks
            if task not in self.data
        ]

    def _unfit(self) -> list[Problem]:
        problems = [
            Problem(f"weights.{task}", f"must be above 0, not {weight:g}", "leave a task without weight out of data")
            for task, weight in self.weights.items()
            if weight <= 0
        ]
        problems += [Problem(f"caps.{task}", f"must be 1 or more, not {n}") for task, n in self.caps.items() if n < 1]
        if set(self.data) <= set(self.clusters):
            problems.append(Problem("held_out", "holds out every task, nothing is left to train on", "hold out fewer"))
        return problems

    def _repeated(self) -> list[Problem]:
        """The same dataset under two names would put its rows in twice."""
        refs = list(self.data.values())
        return [
            Problem(f"data.{task}", f"{ref} is the dataset of another task too", "give each dataset once")
            for index, (task, ref) in enumerate(self.data.items())
            if ref in refs[:index]
        ]

    @property
    def clusters(self) -> dict[str, str]:
        """The held-out cluster of each task that is in one; in several, their names joined."""
        found: dict[str, str] = {}
        for cluster, tasks in self.held_out.items():
            for task in tasks:
                found[task] = f"{found[task]}, {cluster}" if task in found else cluster
        return found

    def quotas(self, available: Mapping[str, int]) -> dict[str, int]:
        """Training rows to take of each task, of those available."""
        capped = {task: min(rows, self.caps.get(task, self.cap or rows)) for task, rows in available.items()}
        heaviest = max((self.weights.get(task, 1.0) for task in capped), default=1.0)
        wanted = {task: rows * self.weights.get(task, 1.0) / heaviest for task, rows in capped.items()}
        scale = min(1.0, self.rows / max(1.0, sum(wanted.values()))) if self.rows else 1.0
        # float error must not take a row away
        return {task: int(rows * scale + 1e-9) for task, rows in wanted.items()}

    def estimate(self, rows: Mapping[str, int]) -> dict[str, Any]:
        """The rows are those of several datasets, which are known only once they are there."""
        return {"splits": {}}

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        from tilth.data.finish import finished

        result = finished(out.store) or self._mix(out, inputs)
        tasks = _tasks(result)
        train = {f"train/{task}": splits.get("train", 0) for task, splits in tasks.items()}
        return out.artifact(
            metrics={"tasks": len(tasks), **train},
            counts=result.counts,
            detail={"row_type": result.row_type, "tasks": tasks, "held_out": self.clusters},
        )

    def _mix(self, out: Out, inputs: Mapping[str, Artifact]) -> Dataset:
        from tilth.data.dataset import Dataset
        from tilth.data.engine import run_units
        from tilth.data.finish import finish
        from tilth.data.ledger import Ledger
        from tilth.data.mixing import Mixing, chosen, plan

        sources = {task: Dataset.open(inputs[ref]) for task, ref in self.data.items()}
        row_type = self._row_type(sources)
        self._refuse_untested(sources)
        ledger = Ledger(out.store, out.fingerprint, plan(sources))
        work = Mixing(row_type, {task: source.store for task, source in sources.items()}, self)
        few = sum(map(len, sources.values())) < FEW_ROWS and self.resources.workers == "auto"
        run_units(work, ledger, Resources(workers=0) if few else self.resources, out.stage)
        return finish(ledger, row_type, chosen(ledger, row_type, self))

    def _row_type(self, sources: Mapping[str, Dataset]) -> str:
        types = {task: source.row_type for task, source in sources.items()}
        if len(set(types.values())) > 1:
            told = ", ".join(f"{task} {row_type}" for task, row_type in types.items())
            raise StageError(f"mix: the rows of all tasks must be of one type, but there are: {told}")
        return next(iter(types.values()))

    def _refuse_untested(self, sources: Mapping[str, Dataset]) -> None:
        """StageError where a held-out task would give nothing to evaluate on."""
        bare = [task for task in self.clusters if not sources[task].splits().get("test")]
        if bare and self.held_out_rows == "test":
            raise StageError(
                f"mix: the held-out {', '.join(bare)} has no test rows; set held_out_rows=all to evaluate on all of "
                "its rows, or split it"
            )


def _tasks(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Accepted rows of each task by split."""
    found: dict[str, Counter[str]] = {}
    for table in dataset.tables(["task", "split"]):
        for task, split in zip(table["task"].to_pylist(), table["split"].to_pylist(), strict=True):
            found.setdefault(task, Counter())[split] += 1
    return {task: dict(counts) for task, counts in found.items()}
