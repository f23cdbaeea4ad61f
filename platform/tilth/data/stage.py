"""Stage `data`: raw files to a clean, split dataset in which every record of the input is accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tilth.config import EXECUTION
from tilth.data.clean import Cleaning
from tilth.data.foretelling import foretold
from tilth.data.schema import PAYLOADS, RowType
from tilth.data.source import Source
from tilth.data.split import Sampling, Split, SplitName
from tilth.data.transform import Resources
from tilth.errors import Problem, StageError
from tilth.recipe import Stage

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset
    from tilth.runs import Artifact, Out

LABELS_LISTED = 1000
#: below so many pieces, starting Ray takes longer than reading them
FEW_UNITS = 4


class Data(Stage):
    """Reads sources, cleans their rows, drops duplicates, splits and samples; what cannot be read is quarantined."""

    produces: ClassVar[str] = "dataset"
    version: ClassVar[int] = 4  # class labels in lists have their names

    row: RowType = Field(description="What a row is: text, labelled, completion, chat or preference.")
    source: Source | None = Field(None, description="Rows that are not split yet; see `split`.")
    sources: dict[SplitName, Source] = Field(
        default_factory=dict,
        description="Sources by split, for data that is published split; a row that is also in test is taken out of "
        "validation and train.",
    )
    clean: Cleaning = Field(default_factory=Cleaning, description="How texts are normalised.")
    split: Split | None = Field(None, description="Shares to hold out of `source`; without it all is for training.")
    sample: Sampling | None = Field(None, description="Use a part of the rows.")
    max_quarantined: float = Field(
        0.01, ge=0, le=1, json_schema_extra=EXECUTION, description="Share of rows in quarantine at which it fails."
    )
    resources: Resources = Field(default_factory=Resources, description="Workers.", json_schema_extra=EXECUTION)

    def check(self) -> list[Problem]:
        problems = []
        if (self.source is None) == (not self.sources):
            mend = "give `source` for rows that are not split yet, or `sources` by split"
            problems.append(Problem("source", "needs exactly one of source and sources", mend))
        if self.split is not None and self.sources:
            problems.append(Problem("split", "splits `source`, but `sources` are split already", "leave one out"))
        if self.sample is not None and self.row != "labelled" and (self.sample.labels or self.sample.per_label):
            problems.append(Problem("sample", f"rows of type {self.row} have no label", "use sample.rows"))
        for where, source in self._named().items():
            if not source.check():
                problems += self._unmapped(where, source, source.peek())
        return problems

    def _named(self) -> dict[str, Source]:
        """Every source by its dotted path in this config."""
        return {
            **({"source": self.source} if self.source else {}),
            **{f"sources.{k}": v for k, v in self.sources.items()},
        }

    def _by_split(self) -> dict[str, Source]:
        """Every source by its split, by "" where its rows are not split yet."""
        return {"": self.source} if self.source else {str(split): source for split, source in self.sources.items()}

    def _unmapped(self, where: str, source: Source, found: list[str] | None) -> list[Problem]:
        """Columns of the row that the source would have to have under our own names, and has not."""
        known = PAYLOADS[self.row]
        needed = {name: name for name in known if name not in source.columns}
        if source.implicit_prompt:
            needed.pop("prompt", None)
        problems = source.column_problems(found, needed)
        problems += [
            Problem(
                f"columns.{name}",
                f"rows of type {self.row} have no column {name!r}",
                f"they have: {', '.join(known)}, id",
            )
            for name in source.columns
            if name not in (*known, "id")
        ]
        return [Problem(f"{where}.{p.where}", p.what, p.mend or "map it in columns") for p in problems]

    def estimate(self, rows: Mapping[str, int]) -> dict[str, Any]:
        """The records of the sources that the sample keeps, as far as a glance tells."""
        splits = foretold(self._by_split(), self.split, self.sample) or {}
        return {"rows": sum(splits.values()), "splits": splits}

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        from tilth.data.finish import finished

        result = finished(out.store) or self._build(out)
        counts = {**result.counts, "labels": _labels(result)}
        artifact = out.artifact(counts=counts, detail={"row_type": result.row_type})
        self.judge(artifact, inputs)
        return artifact

    def judge(self, artifact: Artifact, inputs: Mapping[str, Artifact]) -> None:
        from tilth.data.finish import check_quarantine

        check_quarantine(artifact.store, artifact.counts, self.max_quarantined)
        if not artifact.counts["inputs"]:
            named = ", ".join(f"{item.kind} {getattr(item, 'path', '')}".strip() for item in self._named().values())
            raise StageError(f"no record was found in {named}: the data has a header at most; check the path")

    def _build(self, out: Out) -> Dataset:
        from tilth.data.engine import run_units
        from tilth.data.finish import finish
        from tilth.data.ingest import Ingest, pieces
        from tilth.data.ledger import Ledger
        from tilth.data.placement import place_rows

        sources = self._by_split()
        self._first_look(sources)
        work = Ingest(self.row, sources, self.clean, pieces(sources))
        ledger = Ledger(out.store, out.fingerprint, work.units())
        few = len(ledger.units) < FEW_UNITS and self.resources.workers == "auto"
        run_units(work, ledger, Resources(workers=0) if few else self.resources, out.stage)
        placed = place_rows(ledger, self.row, self.clean.duplicates, self.split or Split(), self.sample)
        return finish(ledger, self.row, placed, max_quarantined=self.max_quarantined)

    def _first_look(self, sources: Mapping[str, Source]) -> None:
        """Columns that `check` could not see cheaply (Parquet, object stores, the hub), before any work."""
        for where, source in sources.items():
            if source.peek() is None and (found := source.first_columns()) is not None:
                problems = [*source.column_problems(found, source.columns), *self._unmapped(where, source, found)]
                if problems:
                    raise StageError("; ".join(map(str, problems)))


def _labels(dataset: Dataset) -> dict[str, Any]:
    """Accepted rows of each label, most frequent first, where rows have labels."""
    if dataset.row_type != "labelled":
        return {}
    counts: Counter[str] = Counter()
    for table in dataset.tables(["label"]):
        counts.update(table["label"].to_pylist())
    return dict(counts.most_common(LABELS_LISTED))
