"""A finished dataset: Parquet shards named by one manifest, `dataset.json`, whose appearance is the switch.

dataset.json              row type, shards in order with rows, bytes, sha256 and split; tallies
data/SPLIT-NNNNN.parquet  accepted rows
rejected/NNNNN.parquet    filtered and quarantined rows, each with its reason
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilth.data.schema import PAYLOADS, Row, arrow_schema, from_table
from tilth.errors import StorageError
from tilth.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from tilth.runs import Artifact

MANIFEST = "dataset.json"


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a dataset, relative to the dataset's directory."""

    name: str
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A dataset on storage. Opening reads the manifest only; rows are read on demand, shard by shard."""

    store: Store
    row_type: str
    shards: tuple[Shard, ...]
    rejected: tuple[Shard, ...] = ()
    #: tallies: inputs, accepted, filtered, quarantined, added, reasons {reason: rows}, via {augmenter: rows}
    counts: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def open(source: Store | Artifact) -> Dataset:
        """The dataset under a store or of an artifact; StorageError where none is finished."""
        store = source if isinstance(source, Store) else source.store

        def build(data: Any) -> Dataset:
            shards = {key: tuple(Shard(**shard) for shard in data[key]) for key in ("shards", "rejected")}
            return Dataset(store, data["row_type"], shards["shards"], shards["rejected"], data["counts"])

        found = store.read_as(MANIFEST, build)
        if found is None:
            raise StorageError(f"{store.url} holds no finished dataset: there is no {MANIFEST}")
        return found

    def save(self) -> None:
        """Write the manifest: from this instant on the dataset exists."""
        body = {"row_type": self.row_type, "counts": self.counts}
        lists = {key: [asdict(shard) for shard in getattr(self, key)] for key in ("shards", "rejected")}
        self.store.write_json(MANIFEST, {**body, **lists})

    def split(self, *splits: str) -> Dataset:
        """The same dataset, only these splits."""
        kept = tuple(shard for shard in self.shards if shard.split in splits)
        return Dataset(self.store, self.row_type, kept, (), self.counts)

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def splits(self) -> dict[str, int]:
        """Rows of each split."""
        found: dict[str, int] = {}
        for shard in self.shards:
            found[shard.split] = found.get(shard.split, 0) + shard.rows
        return found

    def vias(self) -> set[str]:
        """The names of what made its rows; none where all are originals."""
        return {via for via in self.distinct("via") if via is not None}

    def distinct(self, column: str) -> set[Any]:
        """The values of a column, None among them where a row has none."""
        return {value for table in self.tables([column]) for value in table[column].unique().to_pylist()}

    def labels(self) -> list[str]:
        """The sorted labels of labelled rows; none where the rows have no label."""
        if "label" not in PAYLOADS[self.row_type]:
            return []
        return sorted({label for table in self.tables(["label"]) for label in table["label"].to_pylist() if label})

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The accepted rows as Arrow tables, one row group at a time, in manifest order."""
        yield from self._tables(self.shards, columns)

    def rows(self) -> Iterator[Row]:
        """The accepted rows one by one, in manifest order."""
        for table in self.tables():
            yield from from_table(table)

    def rejected_rows(self) -> Iterator[Row]:
        """The dropped rows, each with its reason."""
        for table in self._tables(self.rejected, None):
            yield from from_table(table)

    def scan(self) -> Any:
        """Accepted and dropped rows as one `pyarrow.dataset.Dataset`, to filter and tally by column."""
        import pyarrow.dataset as arrow

        paths = [self.store.path(shard.name) for shard in (*self.shards, *self.rejected)]
        schema = arrow_schema(self.row_type)
        try:
            return arrow.dataset(paths, schema=schema, format="parquet", filesystem=self.store.fs)
        except FileNotFoundError as error:
            raise StorageError(f"{error} is missing; remove its stage and run again") from error

    def _tables(self, shards: Sequence[Shard], columns: Sequence[str] | None) -> Iterator[pa.Table]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for shard in shards:
            try:
                with self.store.open(shard.name) as handle, pq.ParquetFile(handle) as file:
                    # `iter_batches` joins row groups, which are short where rows are long
                    yield from (file.read_row_group(group, columns) for group in range(file.num_row_groups))
            except (FileNotFoundError, pa.ArrowInvalid) as error:
                url = self.store.at_url(shard.name)
                raise StorageError(f"{url} is missing or damaged ({error}); remove its stage and run again") from error

    def local_files(self) -> list[Path]:
        """Local paths of the shards, copied to this node first where they lie on an object store."""
        folder = self.store.fetch("data") if self.shards else Path()
        return [folder / Path(shard.name).name for shard in self.shards]

    def write_to(self, folder: Path) -> Any:
        """A memory-mapped Hugging Face `datasets.Dataset` of the accepted rows, cached under `folder`."""
        import datasets

        files = [str(file) for file in self.local_files()]
        return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder))
