"""Entities among tagged words, whole or not at all, as CoNLL and seqeval count them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tilth.data.schema import Row
from tilth.evaluate.measures.base import Metric, Statistics

if TYPE_CHECKING:
    from tilth.data.bootstrap import Floats


class Entities(Metric):
    """F1, precision and recall of entities (Tjong Kim Sang and De Meulder 2003) by seqeval, and accuracy of words.

    Tags are BIO, BIOES or plain types; an entity is right if its type and both of its ends are.
    """

    reads: ClassVar[tuple[str, ...]] = ("prediction",)
    best: ClassVar[float | None] = 1.0

    def figures(self, rows: Sequence[Row]) -> Statistics:
        import numpy as np

        from tilth.data.bootstrap import Statistic

        terms = np.array([_counts(row["tags"], row["meta"]["prediction"]) for row in rows], float)

        def share(above: int, *below: int) -> Statistic:
            def value(sums: Floats) -> Floats:
                total = sums[:, list(below)].sum(axis=1)
                times = len(below) * sums[:, above]
                found: Floats = np.divide(times, total, out=np.zeros_like(total), where=total > 0)
                return found

            return Statistic(terms, value)

        shares = {"entity_f1": (0, 1, 2), "entity_precision": (0, 1), "entity_recall": (0, 2), "tag_accuracy": (3, 4)}
        return {name: share(*columns) for name, columns in shares.items()}

    def detail(self, rows: Sequence[Row]) -> dict[str, Any]:
        from seqeval.metrics import classification_report

        truth, predicted = [row["tags"] for row in rows], [row["meta"]["prediction"] for row in rows]
        report = classification_report(truth, predicted, output_dict=True, zero_division=0)
        types = {name: found for name, found in report.items() if not name.endswith(" avg")}
        return {
            "entities": {name: {key: float(value) for key, value in found.items()} for name, found in types.items()}
        }


def _counts(truth: list[str], predicted: list[str]) -> tuple[int, ...]:
    """Right, predicted and true entities, right words, words."""
    from seqeval.metrics.sequence_labeling import get_entities

    true, said = set(get_entities(truth)), set(get_entities(predicted))
    right = sum(one == other for one, other in zip(truth, predicted, strict=True))
    return len(true & said), len(said), len(true), right, len(truth)
