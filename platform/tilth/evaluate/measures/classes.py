"""Labels right and wrong: scikit-learn's figures, ranks of probabilities, and how honest confidences are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth.data.schema import Row
from tilth.errors import StageError
from tilth.evaluate.measures.base import Metric, Predicted, Statistics

if TYPE_CHECKING:
    from tilth.data.bootstrap import Floats, Statistic

ClassFigure = Literal["accuracy", "f1_macro", "precision_macro", "recall_macro", "mcc"]

#: more labels than this are no classes but answers, as where every row has choices of its own
MOST_LABELS = 500


class Classification(Metric):
    """Accuracy, macro F1, precision and recall, and Matthews' correlation (Gorodkin 2004), as scikit-learn has them.

    Macro figures leave out a class that is neither true nor predicted in any row; a class that is never predicted has
    precision 0. Of more than 500 labels, as where every row has choices of its own, there is no table of classes, and
    accuracy alone is told unless `show` is set.
    """

    reads: ClassVar[tuple[str, ...]] = ("prediction",)
    best: ClassVar[float | None] = 1.0
    of_many: ClassVar[frozenset[str]] = frozenset({"f1_macro", "precision_macro", "recall_macro", "mcc"})

    show: tuple[ClassFigure, ...] | None = Field(
        None,
        min_length=1,
        description="Which, the one that counts most first; none: accuracy and f1_macro, of more than 500 labels "
        "accuracy.",
    )

    def statistics(self, predicted: Predicted) -> dict[str, Statistics]:
        pairs = {model: (truth_of(rows), guesses(rows)) for model, rows in predicted.items()}
        labels = sorted({label for pair in pairs.values() for side in pair for label in side})
        usual: tuple[ClassFigure, ...] = ("accuracy", "f1_macro") if len(labels) <= MOST_LABELS else ("accuracy",)
        shown = self.show or usual
        return {model: {name: _figure(name, *pair, labels) for name in shown} for model, pair in pairs.items()}

    def detail(self, rows: Sequence[Row]) -> dict[str, Any]:
        from tilth.evaluate import metrics

        truth, predicted = truth_of(rows), guesses(rows)
        names = metrics.label_set(truth, predicted)
        if len(names) > MOST_LABELS:
            return {}
        return {
            "averages": metrics.averages(truth, predicted),
            "per_class": metrics.per_class(truth, predicted),
            "labels": names,
            "confusion": metrics.confusion(truth, predicted, names).tolist(),
        }


def _figure(name: str, truth: list[str], predicted: list[str], labels: list[str]) -> Statistic:
    from tilth.evaluate import metrics

    if name == "accuracy":
        return metrics.accuracy(truth, predicted)
    return metrics.by_class(name, truth, predicted, labels)


def truth_of(rows: Sequence[Row]) -> list[str]:
    """The true label of each row; StageError where a row has none."""
    found = []
    for row in rows:
        told = row["meta"].get("references") or [row.get("label")]
        if told[0] is None:
            raise StageError(f"row {row['id']} has no label; a classifier is evaluated on labelled rows")
        found.append(str(told[0]))
    return found


def guesses(rows: Sequence[Row]) -> list[str]:
    """The label that was predicted for each row."""
    return [str(row["meta"]["prediction"]) for row in rows]


class Auc(Metric):
    """Area under the ROC curve of two labels (Hanley and McNeil 1982): how often the right row ranks above another.

    `positive` is the label whose probability ranks the rows. Ties count half, as in scikit-learn. Of more labels see
    `auc_ovr`.
    """

    version: ClassVar[int] = 2  # probabilities are not rounded
    reads: ClassVar[tuple[str, ...]] = ("prediction", "probabilities")
    of_many: ClassVar[frozenset[str]] = frozenset({"auc"})

    positive: str = Field(min_length=1, description="The label that is looked for.")

    def statistics(self, predicted: Predicted) -> dict[str, Statistics]:
        from tilth.evaluate import metrics

        self._refuse_other_labels(predicted)
        scores = {model: [self._score(row) for row in rows] for model, rows in predicted.items()}
        ranks = sorted({score for found in scores.values() for score in found})
        truth = {model: [label == self.positive for label in truth_of(rows)] for model, rows in predicted.items()}
        return {model: {"auc": metrics.auc(truth[model], scores[model], ranks)} for model in predicted}

    def _refuse_other_labels(self, predicted: Predicted) -> None:
        labels = {label for rows in predicted.values() for label in (*truth_of(rows), *guesses(rows))}
        if len(labels - {self.positive}) != 1:
            raise StageError(
                f"auc ranks {self.positive!r} against one other label; the rows hold {', '.join(sorted(labels))}; "
                "of more than two labels take auc_ovr"
            )

    def _score(self, row: Row) -> float:
        """The probability of the positive label."""
        return float(row["meta"]["probabilities"].get(self.positive, 0.0))


class AucOvr(Metric):
    """Area under the ROC curve of each label against all others, and the mean over labels (Fawcett 2006, section 9).

    scikit-learn's `roc_auc_score(multi_class="ovr", average="macro")`: every label counts alike, ties count half. The
    mean is over the labels that rows have; labels that a model knows and no row has are named. A label of which a
    model knows nothing has the probability 0.
    """

    reads: ClassVar[tuple[str, ...]] = ("probabilities",)
    of_many: ClassVar[frozenset[str]] = frozenset({"auc_ovr"})

    def statistics(self, predicted: Predicted) -> dict[str, Statistics]:
        from tilth.evaluate import metrics

        truth = truth_of(next(iter(predicted.values())))
        labels = sorted(set(truth))
        if len(labels) < 2:
            raise StageError(f"auc_ovr ranks rows of one label against others; all rows have the label {labels[0]!r}")
        if len(labels) > MOST_LABELS:
            raise StageError(f"auc_ovr ranks rows by each label; {len(labels)} of them are no classes but answers")
        scores = {model: _spread(rows, labels) for model, rows in predicted.items()}
        return {model: {"auc_ovr": found} for model, found in metrics.auc_ovr(truth, scores, labels).items()}

    def detail(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Of how many labels it is the mean, and which ones no row has."""
        held = set(truth_of(rows))
        known = {label for row in rows for label in row["meta"]["probabilities"]}
        return {"auc_ovr": {"labels": len(held), "absent": sorted(known - held)}}


def _spread(rows: Sequence[Row], labels: Sequence[str]) -> Floats:
    """The probability of each label in each row (rows, labels)."""
    import numpy as np

    told = [row["meta"]["probabilities"] for row in rows]
    return np.array([[found.get(label, 0.0) for label in labels] for found in told], dtype=np.float64)


class Calibration(Metric):
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599): bins of equal width.

    The mean distance between how sure the model is and how often it is right; 0 is honest.
    """

    reads: ClassVar[tuple[str, ...]] = ("prediction", "confidence")
    less_is_better: ClassVar[bool] = True
    of_many: ClassVar[frozenset[str]] = frozenset({"ece"})

    bins: int = Field(15, ge=1, le=1000, description="Bins of confidence.")

    def figures(self, rows: Sequence[Row]) -> Statistics:
        from tilth.evaluate import metrics

        right = [truth == said for truth, said in zip(truth_of(rows), guesses(rows), strict=True)]
        return {"ece": metrics.calibration(right, [row["meta"]["confidence"] for row in rows], self.bins)}
