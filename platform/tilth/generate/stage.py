"""Stage `generate`: a dataset made by a language model, every row gated, traceable and written once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tilth.config import EXECUTION, DatasetRef
from tilth.data.memory import held
from tilth.data.quality import Quality, judge_made
from tilth.data.schema import PAYLOADS, from_table
from tilth.data.transform import Inputs, Resources, Transform
from tilth.errors import Problem, StageError
from tilth.generate.base import Generator
from tilth.generate.budget import Budget
from tilth.generate.method import Method, PoolMethod, RowMethod, reads
from tilth.generate.naming import refuse_again
from tilth.recipe import PROBE, Stage

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset
    from tilth.runs import Artifact, Out
    from tilth.weights import Sized

FIGURES = "generation.json"


class Generate(Stage):
    """Rows made by a method from a dataset of seeds, documents or labelled rows.

    Only training rows are shown to the model. The result holds what was made and, where the rows are of the same
    type, the dataset that it was made from with its test and validation rows.
    """

    produces: ClassVar[str] = "dataset"
    version: ClassVar[int] = 3  # a row on which a gate raises is quarantined there

    data: DatasetRef = Field(description='Seeds, documents or rows, as "@stage".')
    method: Method = Field(description="How rows are made.")
    generator: Generator | None = Field(None, description="The model that answers; some methods need none.")
    steps: tuple[Transform, ...] = Field((), description="Gates on what is made, applied in this order.")
    target: int | None = Field(None, ge=1, description="Accepted rows at which it has enough; a balance may want more.")
    budget: Budget = Field(default_factory=Budget, description="Limits at which it stops with what it has.")
    quality: Quality | None = Field(
        None,
        json_schema_extra=EXECUTION,
        description="Diversity and bias to measure and hold; {}: all, without limits.",
    )
    keep_data: bool | None = Field(None, description="Pass the given rows on too; none: where their type is the same.")
    round_rows: int = Field(512, ge=1, description="Rows that a pool method's round tries to make at most.")
    unit_rows: int | None = Field(None, ge=1, description="Asks committed together; None: by their number.")
    max_quarantined: float = Field(
        0.05, ge=0, le=1, json_schema_extra=EXECUTION, description="Share of quarantined rows at which it fails."
    )
    resources: Resources = Field(default_factory=Resources, description="Workers.", json_schema_extra=EXECUTION)

    def check(self) -> list[Problem]:
        return [*self._generator_problems(), *self._end_problems()]

    def _generator_problems(self) -> list[Problem]:
        if self.generator is None and self.method.needs_generator:
            return [Problem("generator", f"{self.method.kind} asks a model, but there is none", "give a generator")]
        return []

    def _end_problems(self) -> list[Problem]:
        """A method that could go on for ever needs a target or a budget; a column that no row has is no gate's."""
        limits = (self.budget.max_tokens, self.budget.max_rows, self.budget.max_hours, self.budget.max_cost)
        problems = []
        if isinstance(self.method, PoolMethod) and self.target is None and not any(limits):
            problems.append(Problem("target", f"{self.method.kind} would never end", "set target or a budget"))
        known = PAYLOADS[self.method.makes]
        for index, step in enumerate(self.steps):
            for where, column in step.columns().items():
                if column not in known:
                    what = f"works on column {column!r}, which the rows of {self.method.kind} do not have"
                    problems.append(Problem(f"steps.{index}.{where}", what, f"use one of: {', '.join(known)}"))
        return problems

    def estimate(self, rows: Mapping[str, int]) -> dict[str, Any]:
        """Rows: the target; the rest is known after a probe (`tilth plan --probe`) or a run."""
        return {"rows": self.target or 0, "splits": {"train": self.target or 0}}

    def work(self, rows: Mapping[str, int], before: Artifact) -> tuple[int, int] | None:
        """Rows that it keeps where it has a target, else those that a method goes through; rounds end by a budget."""
        if self.target is not None:
            return self.target, before.counts.get("accepted", 0)
        if isinstance(self.method, PoolMethod) or "given" not in before.detail:
            return None
        return sum(rows.get(split, 0) for split in reads(self.method)), before.detail["given"]

    def probe(self, inputs: Mapping[str, Artifact]) -> dict[str, float]:
        from tilth.data.dataset import Dataset
        from tilth.generate.probing import probe

        source = Dataset.open(inputs[self.data])
        self._check_rows(source)
        found, total = probe(self, source, Inputs.of(inputs))
        return found.estimate(total, self.target)

    def memory(self, sized: Sized) -> float | None:
        return held(self, sized, self.resources)

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        from tilth.data.dataset import Dataset
        from tilth.data.finish import finished

        source = Dataset.open(inputs[self.data])
        self._check_rows(source)
        result = finished(out.store) or self._make(out, source, Inputs.of(inputs, out.pins))
        figures = out.store.read_json(FIGURES)
        figures["probe"] = out.store.read_json(PROBE)
        counts = result.counts
        made, short = counts["inputs"], sum(figures.get("short", {}).values())
        metrics: dict[str, Any] = {"made": made, "kept": counts["accepted"], "cost": round(figures["cost"], 4)}
        metrics |= {"short": short} if short else {}
        metrics |= {"kept_share": round(counts["accepted"] / max(1, made), 4), **figures["usage"], **figures["summary"]}
        given = len(source.split(*reads(self.method)))
        detail = {"row_type": result.row_type, "given": given, **figures}
        artifact = out.artifact(metrics=metrics, counts=counts, detail=detail)
        self.judge(artifact, inputs)
        return artifact

    def judge(self, artifact: Artifact, inputs: Mapping[str, Artifact]) -> None:
        judge_made(artifact, inputs, self.data, self.max_quarantined, self.quality)

    def _check_rows(self, source: Dataset) -> None:
        if source.row_type not in self.method.takes:
            raise StageError(
                f"{self.method.kind} starts from {' or '.join(self.method.takes)} rows, "
                f"but {self.data} holds {source.row_type} rows"
            )
        if self.keep_data and source.row_type != self.method.makes:
            raise StageError(
                f"keep_data: {self.method.kind} makes {self.method.makes} rows, which cannot lie beside the "
                f"{source.row_type} rows of {self.data}; leave keep_data out"
            )
        if isinstance(self.method, RowMethod) and source.row_type == self.method.makes:
            refuse_again(self.method.via, source.split(*self.method.reads), self.data)
        if self.quality is not None:
            self.quality.refuse_limits(self.method.makes)

    def carries(self, source: Dataset) -> bool:
        """Whether the rows of the data are in the result beside those that are made."""
        return source.row_type == self.method.makes and self.keep_data is not False

    def _make(self, out: Out, source: Dataset, context: Inputs) -> Dataset:
        from tilth.data.finish import Verdicts, finish
        from tilth.generate.rounds import Rounds, refuse_empty

        rounds = Rounds(self, out.store, out.fingerprint, source, context)
        why = rounds.run(out.stage)
        refuse_empty(rounds, why)
        everything = (row for table in rounds.books.tables() for row in from_table(table))
        out.store.write_json(FIGURES, {**rounds.figures(why), "summary": self.method.summary(everything)})
        carried = source if self.carries(source) else None
        return finish(rounds.books, self.method.makes, Verdicts(rounds.reasons), carried, self.max_quarantined)
