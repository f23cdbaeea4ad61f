"""How well a language model foresees texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tilth.data.schema import Row
from tilth.errors import StageError
from tilth.evaluate.measures.base import Metric, Statistics

#: nats a token whose exponential is a number
_MOST = 700.0


class Perplexity(Metric):
    """Perplexity per token, and bits per byte, which compares models whose tokens differ (Gao et al. 2020).

    Both are of the texts as far as the model read them, and models that read different parts of some row are not
    compared; with the task's `stride` all of every text is scored.
    """

    reads: ClassVar[tuple[str, ...]] = ("nll", "tokens", "bytes")
    less_is_better: ClassVar[bool] = True

    def figures(self, rows: Sequence[Row]) -> Statistics:
        from tilth.evaluate import metrics

        nll, tokens, size = ([row["meta"][name] for row in rows] for name in self.reads)
        for row, said, scored in zip(rows, nll, tokens, strict=True):
            if said > _MOST * scored:
                raise StageError(
                    f"row {row['id']}: {said / scored:,.0f} nats a token are a perplexity beyond any number; a model "
                    "says so of texts that are none, or after a training that diverged"
                )
        return {"perplexity": metrics.perplexity(nll, tokens), "bits_per_byte": metrics.bits_per_byte(nll, size)}
