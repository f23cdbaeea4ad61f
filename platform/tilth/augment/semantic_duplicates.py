"""Global duplicates of meaning: an added row that says in other words what any row of any split says is dropped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from tilth.augment.canonical import in_order
from tilth.config import EXECUTION, ModelRef
from tilth.data.embeddings import DEFAULT_MODEL
from tilth.data.schema import Row
from tilth.data.transform import Inputs, RowsFunction, Transform

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


class SemanticDuplicates(Transform):
    """Drops added rows whose embedding is that of another row, nearly (SemDeDup, Abbas et al. 2023, arXiv:2303.09540).

    Up to 16,384 rows every pair is compared; beyond, those of near k-means buckets (see `data.alike`; of the pairs of
    banking77 at 0.95, 99.8 % were found in 40 buckets). Of two rows the first in canonical order stays: originals
    (test, validation, train), then added rows by id; the paper keeps the one farthest from the bucket's centre.

    The texts are embedded when all rows are there, about 200 short ones a second on a CPU core, by the driver or on
    all nodes of a cluster; then 20,000 rows a second are compared. The driver holds 1.5 kB for each row.
    Reason: `semantic_duplicate`.
    """

    field: str = Field("text", description="The column that is compared.")
    threshold: float = Field(0.95, gt=0.0, le=1.0, description="Cosine from which two texts mean the same.")
    model: ModelRef = Field(DEFAULT_MODEL, description="Sentence embedding model: hub name or directory.")
    originals: bool = Field(False, description="Drop originals too: of two, the one in train goes before test's.")
    batch_tokens: int | None = Field(
        None, ge=256, json_schema_extra=EXECUTION, description="Padded tokens run at once; none: fit for the device."
    )

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        """Nothing to do within a unit: duplicates are found over all rows together, see `decide`."""
        return lambda rows: rows

    def decide(self, rows: Iterable[Row], inputs: Inputs) -> dict[str, str]:
        """Reasons by id. StageError where a row lacks the column."""
        import numpy as np

        from tilth.data.alike import twins
        from tilth.data.vectors import vectors_of

        items = in_order(rows, self.field, originals=self.originals)
        judged = np.array([item.judged for item in items], bool)
        if not judged.any():
            return {}
        texts = [item.text for item in items]
        vectors = vectors_of(texts, self.model, inputs, f"{self.kind}: embedding", self.batch_tokens)
        # float error moves the seventh decimal with the batch: of two equal texts one is dropped at 1.0 too
        found = twins(vectors, judged, self.threshold - 1e-6)
        return {
            items[index].id: f"semantic_duplicate: of {items[twin.index].named} at {twin.cosine:.2f}"
            for index, twin in found.items()
        }
