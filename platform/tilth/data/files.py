"""Finding and opening data files: local ones with the standard library alone, others through fsspec."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

_WILD = "*?["


def no_match(path: str) -> str:
    """What to say where a path leads nowhere."""
    return f"no file matches {path!r}" + ("" if "://" in path else f" (looked from {Path.cwd()})")


def local_files(path: str) -> tuple[list[str], str]:
    """Local files of a path, directory or glob, sorted, and the directory that names are relative to."""
    whole = Path(path).expanduser().absolute()
    if whole.is_file():
        return [str(whole)], str(whole.parent)
    if whole.is_dir():
        inside = (file for file in whole.rglob("*") if file.is_file() and not file.name.startswith((".", "_")))
        return sorted(map(str, inside)), str(whole)
    if not any(mark in path for mark in _WILD):
        return [], str(whole)
    root = _fixed_part(str(whole))
    found = Path(root).glob(posixpath.relpath(str(whole), root))
    return sorted(str(file) for file in found if file.is_file()), root


def remote_files(path: str) -> list[tuple[str, str]]:
    """Files behind a URI, directory or glob of URIs, each with its name relative to where they lie."""
    import fsspec

    from tilth.content import matches

    fs, inner = fsspec.core.url_to_fs(path)
    found = matches(fs, inner)
    if found == [inner]:
        root = posixpath.dirname(inner)
    else:
        root = _fixed_part(inner) if any(mark in inner for mark in _WILD) else inner
    return [(fs.unstrip_protocol(name), posixpath.relpath(name, root)) for name in found]


def _fixed_part(pattern: str) -> str:
    """The directory before the first wildcard."""
    parts = pattern.split("/")
    wild = next(index for index, part in enumerate(parts) if any(mark in part for mark in _WILD))
    return "/".join(parts[:wild]) or "/"


def count_lines(file: str) -> int | None:
    """Lines of a plain local file, at the speed of reading it; None for others."""
    if "://" in file or file.endswith((".gz", ".bz2", ".zst")):
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
