"""The order in which rows are looked at together: whatever order they came in, the same row of two is the first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tilth.data.schema import NEW, Row
from tilth.data.texts import text_of

# a text of the test split is the one that must stand: whatever repeats it elsewhere is a leak
_SPLIT_RANK = {"test": 0, "validation": 1}
_LAST_RANK = 2


@dataclass(frozen=True, slots=True)
class Item:
    """What is compared of a row. `judged`: it may be dropped; the others are what it is compared with."""

    id: str
    split: str
    text: str
    judged: bool

    @property
    def named(self) -> str:
        """How a reason names it."""
        return f"{self.id} ({self.split})"


def in_order(rows: Iterable[Row], field: str, *, originals: bool = False) -> list[Item]:
    """Accepted rows: originals first (test, validation, train), then added rows, those of this round last; by id.

    Judged are the rows of this round, where rows say so (`schema.NEW`), else all that were ever added; with
    `originals` every row. StageError where a row has no text in column `field`.
    """
    found = sorted((_order(row), row["split"], text_of(row, field)) for row in rows if row["reason"] is None)
    last_tier = found[-1][0][0] if found else 0
    first_judged = 0 if originals else max(1, last_tier)
    return [Item(order[2], split, text, order[0] >= first_judged) for order, split, text in found]


def _order(row: Row) -> tuple[int, int, str]:
    """(originals, added, of this round; rank of the split among originals; id)."""
    if row["via"] is None:
        return 0, _SPLIT_RANK.get(row["split"], _LAST_RANK), row["id"]
    return 2 if row.get(NEW) else 1, 0, row["id"]
