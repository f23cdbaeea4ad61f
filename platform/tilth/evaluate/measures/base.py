"""The family of metrics: what a model said beside what is right, as figures that can be resampled.

A metric works twice. In the workers, `load` gives the terms of each row (n-gram counts, a cosine, a program's fate),
which are committed with the row. On all rows together, `statistics` sums those terms into figures (see
`evaluate.metrics.Statistic`), so that thousands of resamples cost one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tilth.config import Component
from tilth.data.schema import Row
from tilth.data.transform import Inputs, RowsFunction, Transform
from tilth.errors import StageError

if TYPE_CHECKING:
    from tilth.data.bootstrap import Statistic
    from tilth.data.transform import Fitted

Terms = list[float]
#: predicted rows of each model, the same rows in the same order
Predicted = Mapping[str, Sequence[Row]]
Statistics = dict[str, "Statistic"]


class Metric(Component, family="metric"):
    """Scores predicted rows: an author writes `load` or `statistics`, or both.

    A predicted row holds in `meta` what its model said: `answers` with `references` (generation), `prediction` with
    `confidence` (classifiers; a list of tags, a span of the context), or `nll`, `tokens` and `bytes`.
    """

    #: keys of `meta` without which it has nothing to score
    reads: ClassVar[tuple[str, ...]] = ()
    #: whether less of its figures is better
    less_is_better: ClassVar[bool] = False
    #: the figure of a row that no other can surpass, if there is one
    best: ClassVar[float | None] = None
    #: figures that say nothing of one row by itself, such as those of classes and ranks
    of_many: ClassVar[frozenset[str]] = frozenset()

    @property
    def title(self) -> str:
        """What its terms are kept under, and what tells two of a kind apart."""
        return self.kind

    def load(self, inputs: Inputs) -> Callable[[list[Row]], list[Terms]] | None:
        """A function from rows to their terms, called once in each worker; None where rows tell all themselves."""
        return None

    def statistics(self, predicted: Predicted) -> dict[str, Statistics]:
        """Figures of each model by name, the one that counts most first."""
        return {model: self.figures(rows) for model, rows in predicted.items()}

    def figures(self, rows: Sequence[Row]) -> Statistics:
        """The same for one model, where models need not be looked at together."""
        raise TypeError(f"{type(self).__name__} must define figures() or statistics()")

    def detail(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What cannot be resampled and is told beside the figures: signatures, tables."""
        return {}

    def terms(self, rows: Sequence[Row]) -> list[Terms]:
        """What `load` found for each row."""
        return [row["meta"]["terms"][self.title] for row in rows]


class AnswerMetric(Metric, family="metric"):
    """A metric that compares the first answer of each row with the row's references."""

    reads: ClassVar[tuple[str, ...]] = ("answers",)

    def load(self, inputs: Inputs) -> Callable[[list[Row]], list[Terms]] | None:
        score = self.scorer(inputs)
        return lambda rows: [score(answer, references) for answer, references in compared(rows, self.kind)]

    def scorer(self, inputs: Inputs) -> Callable[[str, list[str]], Terms]:
        """A function from an answer and its references to the row's terms."""
        raise TypeError(f"{type(self).__name__} must define scorer()")


class Measure(Transform):
    """Adds to each predicted row, in `meta.terms`, what metrics make of it alone."""

    sees_parents: ClassVar[bool] = False

    metrics: tuple[Metric, ...] = Field(description="What is measured of each row.")

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        loaded = {metric.title: function for metric in self.metrics if (function := metric.load(inputs))}

        def measure(rows: list[Row]) -> list[Row]:
            told = [row for row in rows if row["reason"] is None]
            found = {title: iter(function(told)) for title, function in loaded.items()}
            for row in told:
                row["meta"] = {**row["meta"], "terms": {title: next(terms) for title, terms in found.items()}}
            return rows

        return measure


def compared(rows: Sequence[Row], kind: str) -> Iterator[tuple[str, list[str]]]:
    """The first answer of each row, without blanks around it, beside its references; StageError without any."""
    for row in rows:
        references = row["meta"].get("references")
        if not references:
            raise StageError(
                f"row {row['id']} has no reference, and {kind} compares with one; set the task's reference"
            )
        yield row["meta"]["answers"][0].strip(), references
