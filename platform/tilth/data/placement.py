"""What only a look at all rows decides: duplicates, ids used twice, splits, the sample."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tilth.data.clean import map_texts
from tilth.data.dedup import normalise
from tilth.data.finish import Verdicts
from tilth.data.ingest import MARK
from tilth.data.schema import PAYLOADS, SPLITS
from tilth.data.split import Sampling, Split, assign, not_sampled

if TYPE_CHECKING:
    import pyarrow as pa

    from tilth.data.ledger import Ledger

BATCH = 4096
#: the id of an added row, see `schema.added`
_MADE = re.compile(r"(.+)/[^/]+\.\d+")


class _Seen(NamedTuple):
    """A row as the decisions see it."""

    key: str
    split: str | None
    label: str | None
    content: bytes

    @property
    def id(self) -> str:
        return self.key.rpartition(MARK)[0]


@dataclass(frozen=True)
class Placed(Verdicts):
    """Verdicts by marked id; applying them also gives each row its final id."""

    ids: dict[str, str] = field(default_factory=dict)

    def apply(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        table = super().apply(table)
        final = pa.array([self.ids.get(key) or key.rpartition(MARK)[0] for key in table["id"].to_pylist()], pa.string())
        for name in ("id", "root"):
            table = table.set_column(table.schema.get_field_index(name), name, final)
        return table


def place_rows(ledger: Ledger, row_type: str, duplicates: str, split: Split, sampling: Sampling | None) -> Placed:
    """The verdicts over all committed rows. Of rows with the same input the first stays, test before train.

    Holds about a kilobyte for each row in memory.
    """
    rows = list(_accepted(ledger, row_type, duplicates == "normalized"))
    rows.sort(key=lambda row: -SPLITS.index(row.split) if row.split else 0)  # stable: else in the order of reading
    ids, reasons = _namesakes(rows)
    if duplicates != "keep":
        _drop_copies(rows, reasons)
    kept = [row for row in rows if row.key not in reasons]
    drawn = assign({row.id: row.label for row in kept if not row.split}, split)
    splits = {row.key: row.split or drawn[row.id] for row in kept}
    if sampling is not None:
        reasons |= not_sampled(((row.key, row.id, splits[row.key], row.label) for row in kept), sampling)
    return Placed(reasons, splits, ids)


def _accepted(ledger: Ledger, row_type: str, normalized: bool) -> Iterator[_Seen]:
    """The rows that the units kept; `content` is the hash of what a model is given."""
    import pyarrow.compute as pc

    texts = [name for name in PAYLOADS[row_type] if name != "label"]
    labels = ["label"] if "label" in PAYLOADS[row_type] else []
    for table in ledger.tables():
        kept = table.filter(pc.is_null(table["reason"])).select(["id", "split", "task", *texts, *labels])
        for row in (row for batch in kept.to_batches(BATCH) for row in batch.to_pylist()):
            values = [map_texts(row[name], _folded) if normalized else row[name] for name in texts]
            text = json.dumps([row["task"], *values], ensure_ascii=False)
            content = hashlib.blake2b(text.encode(), digest_size=16).digest()
            yield _Seen(row["id"], row["split"], row.get("label"), content)


def _folded(text: str) -> str:
    return normalise(text) or text  # of marks alone nothing would be left


def _namesakes(rows: list[_Seen]) -> tuple[dict[str, str], dict[str, str]]:
    """Final ids of rows whose id is taken, and reasons for those that cannot have the id that they were given."""
    first: dict[str, _Seen] = {}
    ids: dict[str, str] = {}
    reasons: dict[str, str] = {}
    taken = {row.id for row in rows}
    times: Counter[str] = Counter()
    for row in rows:
        made = _MADE.fullmatch(row.id)
        if (holder := first.setdefault(row.id, row)) is not row:
            ids[row.key] = _free(row.id, taken, times)
            if holder.content != row.content:
                reasons[row.key] = f"quarantined/duplicate_id: {row.id!r} is the id of another row"
        elif made and made[1] in taken:
            reasons[row.key] = (
                f"quarantined/reserved_id: {row.id!r} is what a row made from {made[1]!r} would be called"
            )
    return ids, reasons


def _free(name: str, taken: set[str], times: Counter[str]) -> str:
    """An id that no row has; `times` counts how often one was looked for under each name."""
    times[name] += 1
    while (found := f"{name}~{times[name] + 1}") in taken:
        times[name] += 1
    taken.add(found)
    return found


def _drop_copies(rows: list[_Seen], reasons: dict[str, str]) -> None:
    """A reason for every row whose content an earlier row has."""
    first: dict[bytes, _Seen] = {}
    for row in rows:
        if row.key not in reasons and (holder := first.setdefault(row.content, row)) is not row:
            where = f" ({holder.split})" if holder.split else ""
            label = f", labelled {holder.label!r} there" if holder.label != row.label else ""
            reasons[row.key] = f"duplicate: of {holder.id}{where}{label}"
