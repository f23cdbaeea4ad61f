"""Opening data files: local ones with the standard library alone, others through fsspec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO


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
    """A local path or URI, open for reading bytes."""
    if "://" not in file:
        with open(file, "rb") as handle:
            yield handle
        return
    import fsspec

    with fsspec.open(file, "rb") as remote:
        yield remote
