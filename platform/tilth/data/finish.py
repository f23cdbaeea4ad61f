"""From committed units to a finished dataset: global verdicts applied, small files joined, one switch at the end."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tilth.data.dataset import MANIFEST, Dataset, Shard
from tilth.data.ledger import Tally, is_quarantine
from tilth.data.parts import ROW_GROUP, ROW_GROUP_LENGTH, lengths
from tilth.data.schema import SPLITS, Row, arrow_schema, from_table
from tilth.errors import QuarantineError, StorageError
from tilth.lock import refuse_overtaken
from tilth.storage import PARTIAL, Store

if TYPE_CHECKING:
    import pyarrow as pa

#: a shard ends when it holds so many row groups' worth of rows, or of their length
SHARD_GROUPS = 64


class Decided(Protocol):
    """What only a look at all rows could decide."""

    def apply(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """All committed rows in their order, amended; a row already dropped keeps its reason."""


@dataclass(frozen=True)
class Verdicts:
    """Reasons to drop rows, by id."""

    reasons: Mapping[str, str] = field(default_factory=dict)

    def apply(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The tables with their reasons amended; a row already dropped keeps its reason."""
        return map(self._amended, tables)

    def _amended(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        ids = table["id"].to_pylist() if self.reasons else []
        if self.reasons.keys().isdisjoint(ids):
            return table
        reasons = zip(ids, table["reason"].to_pylist(), strict=True)
        column = pa.array([old or self.reasons.get(row_id) for row_id, old in reasons], pa.string())
        return table.set_column(table.schema.get_field_index("reason"), "reason", column)


class Books(Protocol):
    """Committed rows: one ledger, or those of several rounds."""

    store: Store

    def tables(self) -> Iterator[pa.Table]:
        """The rows of all units in order; a large unit comes in several tables."""

    def tally(self) -> Tally:
        """What became of them."""

    def clear(self) -> None:
        """Remove what the finished dataset replaces."""


def accepted_rows(ledger: Books, *, added: bool = False) -> Iterator[Row]:
    """The rows that the units kept; with `added`, only those that this stage made."""
    import pyarrow.compute as pc

    for table in ledger.tables():
        keep = pc.is_null(table["reason"])
        yield from from_table(table.filter(pc.and_(keep, pc.is_valid(table["via"])) if added else keep))


def finish(
    ledger: Books,
    row_type: str,
    verdicts: Decided | None = None,
    carried: Dataset | None = None,
    max_quarantined: float = 1.0,
) -> Dataset:
    """Write the shards of every committed unit, then `dataset.json`: from then on the dataset exists.

    `carried` rows of the input are passed through unchanged. QuarantineError when more than
    `max_quarantined` of the inputs were quarantined; the rejected rows are on storage by then.
    """
    store = ledger.store
    tally = ledger.tally()
    refuse_overtaken()
    try:
        writer = _written(ledger, row_type, verdicts or Verdicts(), carried)
    except OSError as error:
        raise StorageError(f"cannot finish {store.url}: {error}; what was there stays, run again to go on") from error
    counts = {"inputs": tally.inputs, "made": tally.made, **writer.counts()}
    counts["carried"] = len(carried) if carried is not None else 0
    check_quarantine(store, counts, max_quarantined)
    dataset = Dataset(store, row_type, tuple(writer.shards), tuple(writer.rejected), counts)
    refuse_overtaken()
    dataset.save()
    ledger.clear()
    return dataset


def _written(ledger: Books, row_type: str, verdicts: Decided, carried: Dataset | None) -> _Writer:
    """All rows in shards that no manifest names yet."""
    store = ledger.store
    for leftover in ("data", "rejected", *(name for name in store.list() if name.startswith(PARTIAL))):
        store.remove(leftover)  # of an attempt that was killed
    with _Writer(store, row_type) as writer:
        for table in carried.tables() if carried is not None else ():
            writer.write(table)
        writer.counting = True
        for table in verdicts.apply(ledger.tables()):
            writer.write(table)
    return writer


def finished(store: Store) -> Dataset | None:
    """The dataset under `store` if an earlier run got as far as its switch."""
    return Dataset.open(store) if store.exists(MANIFEST) else None


def check_quarantine(store: Store, counts: Mapping[str, Any], limit: float) -> None:
    """QuarantineError with the tally where more than `limit` of the inputs were quarantined."""
    share = counts["quarantined"] / max(1, counts["inputs"])
    if share > limit:
        reasons = {name: n for name, n in counts["reasons"].items() if is_quarantine(name)}
        tally = ", ".join(f"{n:,} {name.removeprefix('quarantined/')}" for name, n in reasons.items())
        raise QuarantineError(
            f"{counts['quarantined']:,} of {counts['inputs']:,} rows ({share:.1%}) are in quarantine ({tally}); "
            f"max_quarantined is {limit:.1%}. Read them in {store.at_url('rejected')}, mend the source, "
            f"or set max_quarantined={math.ceil(share * 1000) / 1000:g} to go on without them"
        )


class _Writer(AbstractContextManager["_Writer"]):
    """Splits tables into accepted shards per split and rejected shards, each in row groups."""

    def __init__(self, store: Store, row_type: str) -> None:
        self.store, self.row_type = store, row_type
        self.scratch = store.scratch()
        self.open: dict[str, _ShardFile] = {}
        self.shards: list[Shard] = []
        self.rejected: list[Shard] = []
        self.counting = False
        self.fates: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.via: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()

    def write(self, table: pa.Table) -> None:
        """Send each row of `table` to its shard."""
        import pyarrow.compute as pc

        dropped = pc.is_valid(table["reason"])
        out = table.filter(dropped)
        kept = table.filter(pc.invert(dropped)) if out.num_rows else table
        if self.counting:
            self._count(kept, out)
        splits = sorted(pc.unique(kept["split"]).to_pylist(), key=_split_order)
        for split in splits:
            self._append(split, kept.filter(pc.equal(kept["split"], split)) if len(splits) > 1 else kept)
        if out.num_rows:
            self._append("rejected", out)

    def _count(self, kept: pa.Table, out: pa.Table) -> None:
        self.fates["accepted"] += kept.num_rows
        self.via.update(_counted(kept["via"].drop_null()))
        for reason, rows in _counted(out["reason"]).items():
            self.fates["quarantined" if is_quarantine(reason) else "filtered"] += rows
            self.reasons[reason.partition(":")[0]] += rows

    def _append(self, stream: str, table: pa.Table) -> None:
        shard = self.open.get(stream)
        if shard is None:
            self.numbers[stream] += 1
            number = self.numbers[stream] - 1
            name = f"rejected/{number:05d}.parquet" if stream == "rejected" else f"data/{stream}-{number:05d}.parquet"
            shard = self.open[stream] = _ShardFile(self.scratch / name.replace("/", "-"), name, stream, self.row_type)
        shard.write(table)
        if shard.full:
            self._close(stream)

    def _close(self, stream: str) -> None:
        shard = self.open.pop(stream)
        done = shard.close()
        self.store.adopt(done.name, shard.path)
        (self.rejected if stream == "rejected" else self.shards).append(done)

    def counts(self) -> dict[str, Any]:
        """Tallies of what was written after `counting` was set."""
        splits: Counter[str] = Counter()
        for shard in self.shards:
            splits[shard.split] += shard.rows
        fates = {name: self.fates[name] for name in ("accepted", "filtered", "quarantined")}
        return {
            **fates,
            "reasons": dict(self.reasons.most_common()),
            "via": dict(self.via.most_common()),
            "splits": dict(splits),
        }

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                for stream in sorted(self.open, key=_split_order):
                    self._close(stream)
                self.shards.sort(key=lambda shard: (_split_order(shard.split), shard.name))
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value stands in a column, in the order in which they first do."""
    import pyarrow.compute as pc

    values, counts = pc.value_counts(column).flatten()
    return dict(zip(values.to_pylist(), counts.to_pylist(), strict=True))


def _split_order(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


class _ShardFile:
    """One Parquet file in the making: rows are held back until a row group stands, which long rows make shorter."""

    def __init__(self, path: Path, name: str, split: str, row_type: str) -> None:
        import pyarrow.parquet as pq

        self.path, self.name, self.split, self.rows, self.length = path, name, split, 0, 0
        self.schema = arrow_schema(row_type)
        self.writer = pq.ParquetWriter(path, self.schema, compression="zstd")
        self.held: list[pa.Table] = []
        self.held_rows = self.held_bytes = 0

    @property
    def full(self) -> bool:
        """Whether the next rows belong in another shard."""
        return self.rows >= SHARD_GROUPS * ROW_GROUP or self.length >= SHARD_GROUPS * ROW_GROUP_LENGTH

    def write(self, table: pa.Table) -> None:
        self._hold(table)
        if self.held_rows >= ROW_GROUP or self.held_bytes >= ROW_GROUP_LENGTH:
            self._flush()

    def _hold(self, table: pa.Table) -> None:
        self.held.append(table)
        self.held_rows += table.num_rows
        self.held_bytes += table.nbytes

    def _flush(self, last: bool = False) -> None:
        """Write full row groups; where one ends is decided by its rows alone, however they came in tables."""
        import pyarrow as pa

        table = pa.concat_tables(self.held).combine_chunks()
        self.held, self.held_rows, self.held_bytes = [], 0, 0
        sizes, start = lengths(table), 0
        while start < table.num_rows:
            sums = sizes[start : start + ROW_GROUP].cumsum()
            rows = min(int(sums.searchsorted(ROW_GROUP_LENGTH)) + 1, len(sums))
            if rows < ROW_GROUP and sums[rows - 1] < ROW_GROUP_LENGTH and not last:
                self._hold(table.slice(start))
                return
            self.writer.write_table(table.slice(start, rows), row_group_size=ROW_GROUP)
            self.rows += rows
            self.length += int(sums[rows - 1])
            start += rows

    def close(self) -> Shard:
        if self.held_rows:
            self._flush(last=True)
        self.writer.close()
        with open(self.path, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return Shard(self.name, self.split, self.rows, self.path.stat().st_size, digest)
