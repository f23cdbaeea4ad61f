"""Which files a path, directory, glob or URI means: one answer for those who read them and for their fingerprint."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tilth.errors import StorageError, TilthError

_WILD = "*?["
_HIDDEN = (".", "_")


def no_match(path: str) -> str:
    """What to say where a path leads nowhere."""
    return f"no file matches {path!r}" + ("" if "://" in path else f" (looked from {Path.cwd()})")


def local_files(path: str) -> tuple[list[str], str]:
    """Local files of a path, directory or glob, sorted, and the directory that names are relative to.

    What exists under the very name is meant before what it matches as a pattern: `rows[1].csv` is a file's name.
    """
    whole = Path(path).expanduser().absolute()
    if whole.is_file():
        return [str(whole)], str(whole.parent)
    if whole.is_dir():
        inside = (file for file in whole.rglob("*") if file.is_file() and _counts(file.relative_to(whole).as_posix()))
        return sorted(map(str, inside)), str(whole)
    if not _is_pattern(path):
        return [], str(whole)
    root = _fixed_part(str(whole))
    found = Path(root).glob(posixpath.relpath(str(whole), root))
    return sorted(str(file) for file in found if file.is_file()), root


def remote_files(path: str) -> list[tuple[str, str]]:
    """Files behind a URI, directory or glob of URIs, each with its name relative to where they lie."""
    fs, inner = filesystem(path)
    with reaching(path):
        fs.invalidate_cache()  # what was listed before may have changed; what is listed now says the mark of each file
        found, root = _matches(fs, inner.rstrip("/"))
    return [(fs.unstrip_protocol(name), posixpath.relpath(name, root)) for name in found]


def filesystem(url: str, remembers: bool = True) -> tuple[Any, str]:
    """The fsspec filesystem of a URI and the path on it; StorageError where its protocol is not to be had.

    One that remembers answers from directories that it has listed, whatever others have written there since.
    """
    import fsspec

    try:
        if not remembers:
            with suppress(TypeError):  # it does not know the option
                return fsspec.core.url_to_fs(url, use_listings_cache=False)  # type: ignore[no-any-return]
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except (ValueError, ImportError) as error:  # a protocol that is unknown, or whose package is missing
        raise StorageError(f"cannot open {url}: {error}") from error


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Whatever a filesystem's own library raises, as StorageError; that a file is or is not there stays what it is."""
    try:
        yield
    except (TilthError, FileNotFoundError, FileExistsError, NotADirectoryError):
        raise
    except Exception as error:  # each kind of store has a library of its own, with errors of its own
        raise StorageError(f"cannot reach {url}: {str(error) or type(error).__name__}") from error


def _matches(fs: Any, path: str) -> tuple[list[str], str]:
    """The files, sorted, and the directory that they lie in."""
    if fs.isfile(path):
        return [path], posixpath.dirname(path)
    if fs.isdir(path):
        inside = fs.find(path)
        return sorted(name for name in inside if _counts(posixpath.relpath(name, path))), path
    if not _is_pattern(path):
        return [], path
    try:
        return sorted(name for name in fs.glob(path) if fs.isfile(name)), _fixed_part(path)
    except FileNotFoundError:  # not even the bucket
        return [], path


def _is_pattern(path: str) -> bool:
    return any(mark in path for mark in _WILD)


def _counts(name: str) -> bool:
    """Whether a file within a directory is data: programs keep their own under names that begin with . or _."""
    return not any(part.startswith(_HIDDEN) for part in name.split("/"))


def _fixed_part(pattern: str) -> str:
    """The directory before the first wildcard."""
    parts = pattern.split("/")
    wild = next(index for index, part in enumerate(parts) if any(mark in part for mark in _WILD))
    return "/".join(parts[:wild]) or "/"
