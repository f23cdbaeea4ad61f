"""Files of units, which may be as large as a source: no more of one is in memory than a row group or a small file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

from tilth.data.schema import Row
from tilth.paths import reaching
from tilth.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP = 4096
#: a row group ends when its rows are so long together, for those who read it hold it as Python objects
ROW_GROUP_LENGTH = 32 << 20
#: bytes up to which the driver holds a whole unit
WHOLE = 64 << 20
_STEP = 1 << 20


def batch(stream: Iterator[Row]) -> Iterator[Row]:
    """The rows of the next row group, which ends earlier where they are large."""
    held = 0
    for row in islice(stream, ROW_GROUP):
        yield row
        held += _length(row)
        if held >= ROW_GROUP_LENGTH:
            return


def _length(value: Any) -> int:
    """About how long a value is in memory: characters of texts, 8 for each number."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list) and value and isinstance(value[0], int):
        return 8 * len(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 8 + sum(map(_length, parts))


def lengths(table: pa.Table) -> Any:
    """The bytes that each row takes, but for what says which values are null: an array of numpy."""
    import numpy as np

    return sum((_bytes(column) for column in table.columns), np.zeros(table.num_rows, np.int64))


def _bytes(column: Any) -> Any:
    """The bytes of each value: a text or list has an offset of 4 besides what it holds."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type):
        return 4 + pc.fill_null(pc.binary_length(column), 0).to_numpy().astype(np.int64)
    if pa.types.is_struct(column.type):
        return sum(_bytes(pc.struct_field(column, [index])) for index in range(column.type.num_fields))
    if not pa.types.is_list(column.type):
        return np.full(len(column), column.type.bit_width // 8, np.int64)
    ends = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64).cumsum()
    sums = np.concatenate(([0], _bytes(pc.list_flatten(column)).cumsum()))[np.concatenate(([0], ends))]
    return 4 + np.diff(sums)


class Hashing:
    """A write-only file that knows the hash and size of what went through it."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.digest, self.size, self.closed = handle, hashlib.sha256(), 0, False

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.handle.write(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self.handle.flush()

    def close(self) -> None:  # the owner of the handle closes it, after fsync
        self.closed = True


def checked(store: Store, name: str, size: int, sha256: str) -> IO[bytes] | None:
    """A file of this size, open for reading, in memory where it is small; None where its hash is another."""
    if size <= WHOLE:
        data = store.read(name)
        return BytesIO(data) if hashlib.sha256(data).hexdigest() == sha256 else None
    return store.open(name) if digest(store, name)[0] == sha256 else None


def digest(store: Store, name: str) -> tuple[str, int]:
    """The sha256 of a file and its size, read step by step."""
    found, size = hashlib.sha256(), 0
    with reaching(store.at_url(name)), store.open(name) as handle:
        while data := handle.read(_STEP):
            found.update(data)
            size += len(data)
    return found.hexdigest(), size


def parts(file: Any, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """A Parquet file as one table, or row group by row group where it is large."""
    groups = range(file.num_row_groups)
    if sum(file.metadata.row_group(group).total_byte_size for group in groups) <= WHOLE:
        yield file.read(columns)
    else:
        yield from (file.read_row_group(group, columns) for group in groups)
