"""What only a look at all rows decides: duplicates, ids used twice, splits, the sample.

Everything is held in arrays by row number, see `tilth.data.seen`: 52 bytes for each row while rows are compared, 8
more where a split is stratified and 8 where a sample is drawn, and about 60 more for each copy; then 2 for each row,
45 and the id that it is of for each copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tilth.data.comparing import COPY, KEPT, RESERVED, TWICE, compare
from tilth.data.drawing import drawn, not_sampled, places, reasons, stratified
from tilth.data.schema import SPLITS
from tilth.data.seen import MADE, Lot, Traits, marked_ids, see, unmarked
from tilth.data.split import Sampling, Split
from tilth.errors import StageError
from tilth.problems import nearest

if TYPE_CHECKING:
    from tilth.data.ledger import Ledger


@dataclass(frozen=True)
class Placed:
    """Verdicts by row number: 2 bytes for each row, 24 for each namesake, 21 for each copy and the ids they are of."""

    fates: NDArray[np.uint8]
    splits: NDArray[np.int8]
    #: see `tilth.data.comparing`
    namesakes: NDArray[np.void]
    copied: NDArray[np.void]
    #: the rows that copies are of, ascending, and their ids
    held: NDArray[np.int64]
    held_ids: pa.LargeStringArray
    label_names: list[str]
    #: what the fates after RESERVED mean
    left_out: tuple[str, ...]

    def apply(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """All rows with reason and split amended and their ids final; a dropped row keeps its reason."""
        start = 0
        for table in tables:
            places = np.flatnonzero(pc.is_null(table["reason"]))
            rows = slice(start, start + len(places))
            yield self._placed(table, rows, places)
            start = rows.stop

    def _placed(self, table: pa.Table, rows: slice, places: NDArray[np.int64]) -> pa.Table:
        """A table whose accepted rows stand at `places` and have the numbers `rows`."""
        ids = unmarked(table["id"])
        dropped = np.flatnonzero(self.fates[rows])
        names = ids.take(pa.array(places[dropped])).to_pylist()
        table = _amended(table, "reason", places[dropped], self._reasons(rows, names))
        placed = self.splits[rows] >= 0
        splits = pa.array(SPLITS).take(pa.array(self.splits[rows][placed]))
        table = _amended(table, "split", places[placed], splits)
        return self._named(table.set_column(table.schema.get_field_index("id"), "id", ids), rows, places)

    def _named(self, table: pa.Table, rows: slice, places: NDArray[np.int64]) -> pa.Table:
        """The table with another id for each namesake; a row that was read is its own root."""
        found = _within(self.namesakes, rows)
        at = places[found["row"] - rows.start]
        taken = zip(table["id"].take(pa.array(at)).to_pylist(), found["number"].tolist(), strict=True)
        table = _amended(table, "id", at, pa.array([f"{name}~{number}" for name, number in taken], pa.string()))
        return table.set_column(table.schema.get_field_index("root"), "root", table["id"])

    def _reasons(self, rows: slice, ids: list[str]) -> pa.Array:
        """Why each of these rows is dropped that is, given its id."""
        fates = self.fates[rows]
        copies = self._copies(rows)
        texts = (
            next(copies) if fate == COPY else self._reason(fate, name)
            for fate, name in zip(fates[fates != KEPT].tolist(), ids, strict=True)
        )
        return pa.array(texts, pa.string())

    def _copies(self, rows: slice) -> Iterator[str]:
        found = _within(self.copied, rows)
        names = self.held_ids.take(pa.array(np.searchsorted(self.held, found["first"]))).to_pylist()
        for name, split, label in zip(names, found["split"].tolist(), found["label"].tolist(), strict=True):
            where = f" ({SPLITS[split]})" if split >= 0 else ""
            other = f", labelled {self.label_names[label]!r} there" if label >= 0 else ""
            yield f"duplicate: of {name}{where}{other}"

    def _reason(self, fate: int, name: str) -> str:
        if fate == TWICE:
            return f"quarantined/duplicate_id: {name!r} is the id of another row"
        if fate == RESERVED and (made := MADE.fullmatch(name)):
            return f"quarantined/reserved_id: {name!r} is what a row made from {made[1]!r} would be called"
        return self.left_out[fate - RESERVED - 1]


def _within(found: NDArray[np.void], rows: slice) -> NDArray[np.void]:
    low, high = np.searchsorted(found["row"], [rows.start, rows.stop])
    return found[low:high]


def _amended(table: pa.Table, name: str, places: NDArray[np.int64], values: pa.Array) -> pa.Table:
    """The table with other values at some places of a column, which ascend."""
    if not len(places):
        return table
    mask = np.zeros(table.num_rows, bool)
    mask[places] = True
    column = pc.replace_with_mask(table[name].combine_chunks(), pa.array(mask), values)
    return table.set_column(table.schema.get_field_index(name), name, column)


def place_rows(ledger: Ledger, row_type: str, duplicates: str, split: Split, sampling: Sampling | None) -> Placed:
    """The verdicts over all committed rows. Of rows with the same input the first stays, test before train."""
    keys, traits = see(ledger, row_type, duplicates == "normalized", _lots(split, sampling))
    fates, namesakes, copied = compare(keys, traits, duplicates != "keep")
    del keys
    splits = _split(traits, fates, namesakes, split)
    if sampling is not None:
        _sample(ledger, traits, fates, splits, sampling)
    held = np.unique(copied["first"])
    return Placed(
        fates,
        splits,
        namesakes,
        copied,
        held,
        unmarked(marked_ids(ledger, held)),
        traits.label_names,
        reasons(sampling) if sampling else (),
    )


def _lots(split: Split, sampling: Sampling | None) -> dict[str, Lot]:
    """What is drawn for each row by its id: a byte, or eight where the order of all rows counts."""
    lots: dict[str, Lot] = {"split": partial(drawn, split=split)}
    if split.stratify:
        lots["split"] = partial(places, split.seed, purpose="split")
    if sampling is not None:
        lots["sample"] = partial(places, sampling.seed, purpose="sample")
    return lots


def _split(traits: Traits, fates: NDArray[np.uint8], namesakes: NDArray[np.void], split: Split) -> NDArray[np.int8]:
    """The split of every row that has one or is kept."""
    splits = traits.splits.copy()
    free = np.flatnonzero((fates == KEPT) & (splits < 0))
    lots = traits.lots["split"][free]
    splits[free] = _stratified(traits, free, lots, namesakes, split) if split.stratify else lots
    return splits


def _stratified(
    traits: Traits, rows: NDArray[np.int64], lots: NDArray[np.float64], namesakes: NDArray[np.void], split: Split
) -> NDArray[np.int8]:
    """The split of each of these rows; rows of one id count once, with the label of the last."""
    first = np.arange(len(traits.splits))
    first[namesakes["row"]] = namesakes["first"]
    roots, root = np.unique(first[rows], return_inverse=True)
    labels, where = np.empty(len(roots), np.int32), np.empty(len(roots))
    labels[root], where[root] = traits.labels[rows], lots
    order = np.argsort(where, kind="stable")
    found = np.empty(len(roots), np.int8)
    found[order] = stratified(labels[order], split)
    return found[root]


def _sample(
    ledger: Ledger, traits: Traits, fates: NDArray[np.uint8], splits: NDArray[np.int8], sampling: Sampling
) -> None:
    """Mark the rows that are not in the sample; StageError for a label that no row has, as one that is misspelt."""
    for label in sampling.labels or ():
        if label not in traits.label_names:
            ways_out = nearest(label, traits.label_names)
            raise StageError(f"no row has the label {label!r} that sample.labels names; {ways_out}")
    kept = np.flatnonzero(fates == KEPT)
    order = _ascending(ledger, kept, traits.lots["sample"][kept])
    left = not_sampled(splits[order], traits.labels[order], traits.label_names, sampling)
    fates[order] = np.where(left, RESERVED + left, KEPT)


def _ascending(ledger: Ledger, rows: NDArray[np.int64], lots: NDArray[np.float64]) -> NDArray[np.int64]:
    """The rows by ascending lot; rows of one id, which have the same, by their marked ids."""
    index = np.argsort(lots, kind="stable")
    same = np.diff(lots[index]) == 0
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same)) if len(rows) else index
    alike = np.sort(index[tied])
    ties = pa.table({"lot": lots[alike], "id": marked_ids(ledger, rows[alike])})
    index[tied] = alike[pc.sort_indices(ties, [("lot", "ascending"), ("id", "ascending")])]
    return rows[index]
