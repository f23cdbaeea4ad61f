"""New words: an added row that says much what another one says, in much the same order, is dropped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tilth.augment.canonical import in_order
from tilth.data.schema import Row
from tilth.data.transform import Inputs, RowsFunction, Transform

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


class Novelty(Transform):
    """Keeps added rows of low ROUGE-L with the whole pool, as Self-Instruct does (Wang et al. 2023, arXiv:2212.10560).

    The pool is every original of any split and every added row that was kept, in canonical order. Each pair counts,
    so the work grows with the square of the rows: on two cores 10,000 instructions of 11 words take 2.4 s, 20,000
    5.4 s. Reason: `not_novel`, naming the row that is most alike.
    """

    field: str = Field("text", description="The column that is compared.")
    threshold: float = Field(0.7, gt=0.0, le=1.0, description="ROUGE-L F from which a row is not novel.")
    words: Literal["a-z", "any"] = Field(
        "a-z", description="a-z: as rouge-score splits, which drops all other letters; any: words of any script."
    )

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        """Nothing to do within a unit: a row is compared with all others, see `decide`."""
        return lambda rows: rows

    def decide(self, rows: Iterable[Row], inputs: Inputs) -> dict[str, str]:
        """Reasons by id. StageError where a row lacks the column."""
        from tilth.data.rouge import Pool, rouge_tokens, word_tokens

        items = in_order(rows, self.field)
        known = [item for item in items if not item.judged]
        new = items[len(known) :]
        pool = Pool(rouge_tokens if self.words == "a-z" else word_tokens)
        pool.take(item.text for item in known)
        found = pool.screen([item.text for item in new], self.threshold)
        members = [*known, *(item for item, near in zip(new, found, strict=True) if near is None)]
        return {
            item.id: f"not_novel: ROUGE-L {near.score:.2f} with {members[near.index].named} >= {self.threshold:g}"
            for item, near in zip(new, found, strict=True)
            if near is not None
        }
