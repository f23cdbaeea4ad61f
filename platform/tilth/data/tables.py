"""Tables as records: Parquet files and Hugging Face datasets, row by row, a batch in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tilth.config import DataPath
from tilth.data.files import opened
from tilth.data.readers import Bad, Item, Record, damage
from tilth.errors import StorageError

if TYPE_CHECKING:
    from tilth.data.source import HuggingFace, Piece

BATCH = 512
PIECE_ROWS = 50_000
#: what reading a damaged file raises; what its store raises is StorageError, see `opened`
_DAMAGED = (pa.ArrowInvalid, UnicodeDecodeError, OSError)


def parquet_spans(file: str) -> list[tuple[int, int | None]]:
    """Row ranges of a file along its row groups, about `PIECE_ROWS` each; one open range where it is damaged."""
    try:
        with opened(file) as handle:
            groups = pq.ParquetFile(handle).metadata
            sizes = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
    except _DAMAGED as error:
        damage(error)
        return [(0, None)]
    spans: list[tuple[int, int | None]] = []
    start = stop = 0
    for size in sizes:
        stop += size
        if stop - start >= PIECE_ROWS:
            spans.append((start, stop))
            start = stop
    return [*spans, (start, stop)] if stop > start else spans


def parquet_rows(file: str) -> int | None:
    """The rows of a file by its footer alone; None where that cannot be read."""
    try:
        with opened(file) as handle:
            rows: int = pq.read_metadata(handle).num_rows
    except (StorageError, *_DAMAGED):
        return None
    return rows


def saved_rows(folder: Path) -> int | None:
    """The rows of a dataset that `save_to_disk` wrote: the lengths of its batches, no row is read."""
    try:
        files = [folder / part["filename"] for part in json.loads((folder / "state.json").read_text())["_data_files"]]
        rows: int = sum(batch.num_rows for file in files for batch in pa.ipc.open_stream(pa.memory_map(str(file))))
    except (OSError, ValueError, KeyError):
        return None
    return rows


def read_parquet(piece: Piece, limit: int) -> Iterator[Item]:
    """The rows of a piece; a damaged file ends in a Bad at the row where reading stopped."""
    row = piece.start
    try:
        with opened(piece.file) as handle, pq.ParquetFile(handle) as file:
            groups, row = _groups(file.metadata, piece)
            for batch in file.iter_batches(BATCH, row_groups=groups):
                yield from _rows(batch, row, limit)
                row += batch.num_rows
    except _DAMAGED as error:
        what = damage(error)
        yield Bad(row + 1, "empty_file: it has no bytes" if "file size is 0" in what else f"broken_file: {what}")


def _groups(metadata: Any, piece: Piece) -> tuple[list[int], int]:
    """The row groups of a piece, which lies along them, and its first row."""
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    stop = sum(sizes) if piece.stop is None else piece.stop
    return [index for index, start in enumerate(starts) if piece.start <= start < stop], piece.start


def _rows(batch: pa.RecordBatch, before: int, limit: int) -> Iterator[Item]:
    schema = pa.schema([_plain(field) for field in batch.schema])
    batch = batch if schema.equals(batch.schema) else batch.cast(schema)
    for index in range(batch.num_rows):
        one = batch.slice(index, 1)
        size = one.nbytes
        if size > limit:
            yield Bad(before + index + 1, f"oversized: {size} bytes, over max_record_bytes={limit}")
            continue
        try:
            yield Record(before + index + 1, one.to_pylist()[0])
        except UnicodeDecodeError as error:
            yield Bad(before + index + 1, f"invalid_utf8: {error}")


def _plain(field: pa.Field) -> pa.Field:
    """The field with values where it has a dictionary of them, whose bytes would count whole for each row."""
    kind = field.type
    if pa.types.is_dictionary(kind):
        return _plain(field.with_type(kind.value_type))
    if pa.types.is_struct(kind):
        return field.with_type(pa.struct([_plain(kind.field(index)) for index in range(kind.num_fields)]))
    if pa.types.is_list(kind):
        return field.with_type(pa.list_(_plain(kind.value_field)))
    if pa.types.is_large_list(kind):
        return field.with_type(pa.large_list(_plain(kind.value_field)))
    return field


def open_dataset(source: HuggingFace, path: str) -> Any:
    """The chosen split as a memory-mapped `datasets.Dataset`; StorageError names the splits there are."""
    import datasets

    try:
        if isinstance(source.path, DataPath):
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(path, source.name, revision=source.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise StorageError(f"dataset {source.path!r} cannot be loaded: {error}") from error
    if isinstance(found, datasets.Dataset):
        return found
    if source.subset not in found:
        raise StorageError(f"{source.path} has no split {source.subset!r}; there are: {', '.join(found)}")
    return found[source.subset]


def read_dataset(dataset: Any, piece: Piece) -> Iterator[Item]:
    """The rows of a piece; class labels become their names, in lists and mappings too."""
    named = _naming(dict(dataset.features)) or dict
    for index in range(piece.start, len(dataset) if piece.stop is None else piece.stop):
        yield Record(index + 1, named(dataset[index]))


def _naming(kind: Any) -> Callable[[Any], Any] | None:
    """What turns class labels within a value of this feature into their names; None where it has none."""
    if hasattr(kind, "int2str"):
        return lambda value: kind.int2str(value) if value is not None and value >= 0 else None
    if isinstance(kind, Mapping):
        parts = {name: found for name, part in kind.items() if (found := _naming(part))}
        return _naming_parts(parts) if parts else None
    item = kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)
    each = None if item is None else _naming(item)
    return each and (lambda value: value if value is None else list(map(each, value)))


def _naming_parts(parts: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def named(value: Any) -> Any:
        return value if value is None else {**value, **{name: found(value[name]) for name, found in parts.items()}}

    return named
