"""Whole files on a local disk: filled under another name, on the disk before they appear, and then placed."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tilth.errors import StorageError

#: how the name of a file that is being written ends; it begins with a dot
UNFINISHED = ".tmp"


def write_local(path: Path, fill: Callable[[IO[bytes]], object], place: Callable[[Path, Path], bool]) -> bool:
    """Fill a temporary file and, once it is whole and on the disk, have it placed at `path`; whether it was."""
    name: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        placed = place(Path(name), path)
        sync_directory(path.parent)
        return placed
    except BaseException as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):  # `fill` may have read: another file can be at fault
            other = f": {error.filename}" if error.filename not in (None, name, str(path.parent)) else ""
            raise StorageError(f"cannot write {path}: {error.strerror or error}{other}") from error
        raise


def replace(made: Path, path: Path) -> bool:
    """Give a finished file its name, whatever had it."""
    made.replace(path)
    return True


def settle(made: Path, path: Path) -> bool:
    """Give a finished file its name only where that is free; a link is refused where it is not, a rename never."""
    try:
        path.hardlink_to(made)
    except FileExistsError:
        made.unlink()
        return False
    except OSError:  # a disk without hard links
        if not path.exists():
            return replace(made, path)
        made.unlink()
        return False
    made.unlink()
    return True


def own_folder(name: str) -> Path:
    """This user's folder among the temporary ones, made where it is not there yet.

    StorageError where it is another's: its name can be foretold, and what is read from there is taken for one's own.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        told = folder.lstat()
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror or error}; free that name, or set TMPDIR") from error
    if not stat.S_ISDIR(told.st_mode) or told.st_uid != os.getuid() or told.st_mode & 0o022:
        raise StorageError(
            f"{folder} is no folder that this user alone can write to: what lies there may be another's; remove it, or "
            "set TMPDIR to a folder of your own"
        )
    return folder


def sync_directory(folder: Path) -> None:
    """Have the names in a directory on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
