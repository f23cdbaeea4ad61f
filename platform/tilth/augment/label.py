"""Label kept: a classifier that learnt from the originals must still see an added row's label in it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tilth import ui
from tilth.augment.base import Candidate, Filter, Verdict, VerdictsFunction
from tilth.config import EXECUTION, ModelRef
from tilth.data.embeddings import DEFAULT_MODEL, embedder
from tilth.data.schema import Row, row_seed
from tilth.data.transform import Inputs

if TYPE_CHECKING:
    from tilth.augment.classifiers import Classifier
    from tilth.data.transform import Fitted


class LabelPreserved(Filter):
    """Keeps added rows whose label a classifier still finds probable, the gate of back-translation and substitution.

    The classifier is `model`, or logistic regression on sentence embeddings that is fitted on the train split's
    originals. How good that one is stands in what `fit` returns: cross-validated `accuracy` and `passing`, the share
    of held-out originals that would pass this gate: a gate that stops its own originals is of no use.

    Recorded: `meta.label_predicted`, `meta.label_probability` (of the row's own label). Reasons: `label_changed`,
    `label_uncertain`, `label_unseen` (the classifier has no such class), `label_missing`.
    """

    version: ClassVar[int] = 3  # a text longer than a model has positions for is cut, not quarantined

    model: ModelRef | None = Field(None, description="A text classifier: stage or directory; none: fit one.")
    embedder: ModelRef = Field(DEFAULT_MODEL, description="Embeddings that the fitted classifier stands on.")
    min_probability: float = Field(0.5, gt=0.0, le=1.0, description="Least probability of the row's own label.")
    fit_rows: int = Field(20_000, ge=10, description="Originals to fit on at most, drawn by id.")
    batch_tokens: int | None = Field(
        None, ge=256, json_schema_extra=EXECUTION, description="Padded tokens run at once; none: fit for the device."
    )

    def fit(self, rows: Iterable[Row], inputs: Inputs) -> Fitted:
        """Arrays of the fitted classifier, none where `model` is given. StageError with too few labelled rows."""
        if self.model is not None:
            return {}
        from tilth.augment.classifiers import fit

        originals = (row for row in rows if row["via"] is None and row["split"] == "train" and row.get("label"))
        drawn = heapq.nsmallest(self.fit_rows, originals, key=lambda row: row_seed(0, row["id"], "label"))
        model = embedder(inputs.model(self.embedder), self.batch_tokens)
        with ui.reporter().progress("label: embedding originals", len(drawn)) as advance:
            vectors = model.encode([row[self.field] for row in drawn], advance)
        fitted = fit(vectors, [row["label"] for row in drawn], self.min_probability)
        ui.reporter().say(
            f"label: the classifier is right on {fitted['accuracy']:.1%} of held-out originals "
            f"({len(drawn):,} rows, {len(fitted['labels'])} labels); {fitted['passing']:.1%} would pass the gate"
        )
        return fitted

    def load_verdicts(self, inputs: Inputs, fitted: Fitted) -> VerdictsFunction:
        classifier = self._classifier(inputs, fitted)
        columns = {label: column for column, label in enumerate(classifier.labels)}

        def judge(candidates: list[Candidate]) -> list[Verdict]:
            found = classifier.probabilities([candidate.text for candidate in candidates])
            return [
                self._verdict(candidate.label, dict(zip(columns, map(float, row), strict=True)))
                for candidate, row in zip(candidates, found, strict=True)
            ]

        return judge

    def _classifier(self, inputs: Inputs, fitted: Fitted) -> Classifier:
        from tilth.augment.classifiers import Linear, SequenceClassifier

        if self.model is not None:
            return SequenceClassifier(inputs.model(self.model), self.batch_tokens)
        return Linear(embedder(inputs.model(self.embedder), self.batch_tokens), fitted)

    def _verdict(self, label: str | None, found: dict[str, float]) -> Verdict:
        best = max(found, key=found.__getitem__)
        if label is None:
            return Verdict("label_missing: the row has no label", {"label_predicted": best})
        if label not in found:
            return Verdict(f"label_unseen: the classifier does not know {label!r}", {"label_predicted": best})
        own = round(found[label], 4)
        meta = {"label_predicted": best, "label_probability": own}
        if own >= self.min_probability:
            return Verdict(meta=meta)
        short = f"{label!r} {own:.2f} < {self.min_probability:g}"
        if best == label:
            return Verdict(f"label_uncertain: {short}", meta)
        return Verdict(f"label_changed: predicts {best!r} {found[best]:.2f}, {short}", meta)
