"""Stage `augment`: augmenters and filters in order over the training rows, every added row gated and traceable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth.augment.base import Augmenter
from tilth.config import EXECUTION, DatasetRef
from tilth.data.memory import held
from tilth.data.quality import Quality, judge_made
from tilth.data.schema import NEW, PAYLOADS, Row
from tilth.data.transform import Inputs, Resources, Transform
from tilth.errors import Problem, StageError
from tilth.recipe import Stage

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset
    from tilth.data.ledger import Ledger
    from tilth.runs import Artifact, Out
    from tilth.weights import Sized

Split = Literal["train", "validation", "test"]


class Augment(Stage):
    """Rows in, the same rows and new ones out. Other splits pass through untouched, so nothing leaks into them."""

    produces: ClassVar[str] = "dataset"
    version: ClassVar[int] = 4  # a row on which a step raises is quarantined there, what was made of it before stays

    data: DatasetRef = Field(description='The dataset, as "@stage".')
    steps: tuple[Transform, ...] = Field(min_length=1, description="Augmenters and filters, applied in this order.")
    splits: tuple[Split, ...] = Field(("train",), min_length=1, description="The splits that are augmented.")
    max_quarantined: float = Field(
        0.01, ge=0, le=1, json_schema_extra=EXECUTION, description="Share of rows in quarantine at which it fails."
    )
    quality: Quality | None = Field(
        None,
        json_schema_extra=EXECUTION,
        description="Diversity and bias to measure and hold; {}: all, without limits.",
    )
    unit_rows: int | None = Field(None, ge=1, description="Rows committed together; None: by the size of the data.")
    resources: Resources = Field(default_factory=Resources, description="Workers.", json_schema_extra=EXECUTION)

    def check(self) -> list[Problem]:
        names = [step.via for step in self.steps if isinstance(step, Augmenter)]
        return [
            Problem(f"steps.{index}", f"two augmenters are called {step.via!r}", "give one of them a name: field")
            for index, step in enumerate(self.steps)
            if isinstance(step, Augmenter) and names.count(step.via) > 1
        ]

    def estimate(self, rows: Mapping[str, int]) -> dict[str, Any]:
        """Rows: those of the splits that it works on, and all that are made of them before the gates."""
        times = 1 + sum(step.variants for step in self.steps if isinstance(step, Augmenter))
        worked = {split: count * times for split, count in rows.items() if split in self.splits}
        return {"rows": sum(worked.values()), "splits": {**rows, **worked}}

    def memory(self, sized: Sized) -> float | None:
        return held(self, sized, self.resources)

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        from tilth.data.dataset import Dataset
        from tilth.data.finish import finished

        source = Dataset.open(inputs[self.data])
        self._check_columns(source.row_type)
        if self.quality is not None:
            self.quality.refuse_limits(source.row_type)
        result = finished(out.store) or self._augment(out, source, Inputs.of(inputs, out.pins))
        counts = result.counts
        added = sum(counts["via"].values())
        metrics = {"added": added, "added_per_row": round(added / max(1, counts["inputs"]), 4)}
        artifact = out.artifact(metrics=metrics, counts=counts, detail={"row_type": result.row_type})
        self.judge(artifact, inputs)
        return artifact

    def judge(self, artifact: Artifact, inputs: Mapping[str, Artifact]) -> None:
        judge_made(artifact, inputs, self.data, self.max_quarantined, self.quality)

    @property
    def working(self) -> tuple[Transform, ...]:
        """The steps as they work on the rows of a unit."""
        return self.steps

    def seen(self, row: Row, given: Set[str]) -> Row:
        """A row of the stage as steps see it that look at all rows together: what it was given is an original.

        `given` are the names of what made rows before this stage.
        """
        made = row["via"] is not None and row["via"] not in given
        return {**row, NEW: True} if made else {**row, "via": None}

    def _check_columns(self, row_type: str) -> None:
        """StageError when a step works on a column that these rows do not have, before any model is loaded."""
        for index, step in enumerate(self.steps):
            for where, column in step.columns().items():
                if column not in PAYLOADS[row_type]:
                    known = ", ".join(PAYLOADS[row_type])
                    raise StageError(
                        f"augment: steps.{index} ({step.kind}) works on column {column!r}, which {row_type} rows do "
                        f"not have; set its {where} to one of: {known}"
                    )

    def _augment(self, out: Out, source: Dataset, context: Inputs) -> Dataset:
        from tilth.data.chain import Chain, cut
        from tilth.data.engine import run_units
        from tilth.data.finish import Verdicts, finish
        from tilth.data.ledger import Ledger

        chosen = source.split(*self.splits)
        others = source.split(*(split for split in source.splits() if split not in self.splits))
        given = chosen.vias()
        self._check_names(given)
        ledger = Ledger(out.store, out.fingerprint, cut(chosen, self.unit_rows))
        if ledger.missing():
            fitted = tuple(step.fit(source.rows(), context) for step in self.steps)
            work = Chain(source.store, source.row_type, self.working, context, fitted)
            run_units(work, ledger, self.resources, out.stage)
        reasons = self._decide(ledger, others, given, context)
        return finish(ledger, source.row_type, Verdicts(reasons), others, self.max_quarantined)

    def _check_names(self, given: Set[str]) -> None:
        """StageError when an augmenter would make ids that the rows have already, before any model is loaded."""
        for index, step in enumerate(self.steps):
            if isinstance(step, Augmenter) and step.via in given:
                raise StageError(
                    f"augment: steps.{index} ({step.kind}) would name its rows as others are: {self.data} already "
                    f"holds rows by {step.via!r}; set its name to another"
                )

    def _decide(self, ledger: Ledger, others: Dataset, given: Set[str], context: Inputs) -> dict[str, str]:
        """Global verdicts of every step, the first reason of a row standing."""
        from tilth.data.chain import decided
        from tilth.data.finish import accepted_rows

        def seen() -> Iterator[Row]:
            originals = ({**row, "via": None} for row in others.rows())
            return chain(originals, (self.seen(row, given) for row in accepted_rows(ledger)))

        return decided(self.steps, seen, context)
