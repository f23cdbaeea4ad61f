"""Opening data files: local ones with the standard library alone, others through fsspec."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import IO, Any, cast

from tilth.errors import StorageError, TilthError


def packed(file: str) -> str | None:
    """gz, bz2 or zst by a file's suffix, however it is written; None for a plain file."""
    suffix = file.rpartition(".")[2].lower()
    return suffix if suffix in ("gz", "bz2", "zst") else None


def count_lines(file: str) -> int | None:
    """Lines of a plain local file, at the speed of reading it; None for others."""
    if "://" in file or packed(file):
        return None
    with open(file, "rb") as handle:
        return sum(data.count(b"\n") for data in iter(partial(handle.read, 1 << 20), b""))


@contextmanager
def opened(file: str) -> Iterator[IO[bytes]]:
    """A local path or URI, open for reading bytes.

    What a store's library raises is StorageError, whatever its type: it is never taken for a damage of the file.
    """
    if "://" not in file:
        with open(file, "rb") as handle:
            yield handle
        return
    import fsspec

    with ExitStack() as stack:
        with _blaming(file):
            remote = stack.enter_context(fsspec.open(file, "rb"))
        yield cast("IO[bytes]", _Remote(remote, file))


@contextmanager
def _blaming(file: str) -> Iterator[None]:
    try:
        yield
    except TilthError:
        raise
    except Exception as error:  # each kind of store has a library of its own, with errors of its own
        raise StorageError(
            f"cannot read {file}: {str(error) or type(error).__name__}; see that it can be reached, then run again"
        ) from error


class _Remote(io.RawIOBase):
    """A file of a store whose every call says which file failed."""

    def __init__(self, handle: Any, file: str) -> None:
        self.handle, self.file = handle, file

    def read(self, size: int = -1, /) -> bytes:
        with _blaming(self.file):
            data: bytes = self.handle.read(size)
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        with _blaming(self.file):
            self.handle.seek(offset, whence)
        return self.tell()

    def tell(self) -> int:
        place: int = self.handle.tell()
        return place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self.handle.seekable())
