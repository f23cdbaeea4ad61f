"""A directory anywhere fsspec reaches (local path, s3://, gs://, memory://), with whole-file atomic writes.

Locally a write is temporary file, fsync, rename, fsync of the directory. On an object store it is one PUT,
which is atomic by itself. Nothing here ever appends: a reader sees a whole file or none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from tilth.disk import UNFINISHED, own_folder, replace, settle, sync_directory, write_local
from tilth.errors import StorageError
from tilth.paths import filesystem, reaching

Built = TypeVar("Built")
#: how the names of directories in the making begin
PARTIAL = ".partial-"
#: by which object stores mark what a file holds or when it was written, the surest first
MARKS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "LastModified", "mtime", "updated", "created")
#: what S3 says of a write that met another, and of a long one whose last answer was lost: it is sent anew
AGAIN = ("ConditionalRequestConflict", "NoSuchUpload")


@dataclass(frozen=True)
class Store:
    """One directory. Cheap to pickle: a worker opens its own connection from the URL."""

    url: str

    @staticmethod
    def at(url: str | Path) -> Store:
        """The store at a path or URI; a local path is made absolute so that workers agree on it."""
        text = str(url)
        if not text.strip():
            raise StorageError("an empty text names no directory; give a path or a URI such as s3://bucket/run")
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        return Store(text.rstrip("/") if "://" in text else str(Path(text).expanduser().resolve()))

    @cached_property
    def _target(self) -> tuple[Any, str]:
        # a local path is taken as it is: fsspec would read "a::b" as one filesystem inside another
        return (LocalFileSystem(), self.url) if self.is_local else filesystem(self.url, remembers=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    @property
    def fs(self) -> Any:
        return self._target[0]

    @property
    def is_local(self) -> bool:
        return "://" not in self.url

    def path(self, name: str = "") -> str:
        """The path of `name` as this store's filesystem spells it."""
        return posixpath.join(self._target[1], name) if name else self._target[1]

    def at_url(self, name: str) -> str:
        return f"{self.url}/{name}"

    def sub(self, name: str) -> Store:
        return Store(self.at_url(name))

    def local(self, name: str = "") -> Path:
        """The local path of `name`; StorageError on an object store."""
        if not self.is_local:
            raise StorageError(f"{self.url} is not a local directory")
        return Path(self.path(name))

    def exists(self, name: str) -> bool:
        with reaching(self.at_url(name)):
            return bool(self.fs.exists(self.path(name)))

    def list(self, name: str = "") -> list[str]:
        """File and directory names directly under `name`, sorted; empty where there is none.

        What a write that was killed has left is not among them.
        """
        try:
            with reaching(self.at_url(name)):
                found = self.fs.ls(self.path(name), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = (posixpath.basename(str(item).rstrip("/")) for item in found)
        return sorted(name for name in names if not (name.startswith(".") and name.endswith(UNFINISHED)))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below, by its path from here; empty where there is no such directory."""
        root = self.path()
        with reaching(self.url):
            self.fs.invalidate_cache(root)
            found = self.fs.find(root, detail=True)
        return {posixpath.relpath(name, root): int(info["size"]) for name, info in found.items()}

    def open(self, name: str, ahead: bool = True) -> IO[bytes]:
        """A file to read; of which only a part is wanted, without `ahead`: S3's would be read on for 50 MiB."""
        how = {} if ahead or self.is_local else {"cache_type": "none"}
        handle: IO[bytes] = self.fs.open(self.path(name), "rb", **how)
        return handle

    def read(self, name: str) -> bytes:
        with reaching(self.at_url(name)):
            data: bytes = self.fs.cat_file(self.path(name))
        return data

    def read_json(self, name: str) -> Any:
        """Parsed JSON of `name`, None where it does not exist; StorageError when it is damaged."""
        try:
            data = self.read(name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise StorageError(
                f"{self.at_url(name)} is not valid JSON ({error}); move it away to begin anew"
            ) from error

    def read_as(self, name: str, build: Callable[[Any], Built]) -> Built | None:
        """What `build` makes of the JSON in `name`, None where it does not exist; StorageError when it is damaged."""
        data = self.read_json(name)
        try:
            return None if data is None else build(data)
        except (TypeError, KeyError, AttributeError) as error:
            url = self.at_url(name)
            raise StorageError(f"{url} is not what Tilth wrote ({error}); move it away to begin anew") from error

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, or leave what was there."""
        self.write_with(name, lambda handle: handle.write(data))

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        self.write(name, text.encode("utf-8", "surrogatepass"))

    def write_with(self, name: str, fill: Callable[[IO[bytes]], object]) -> None:
        """Let `fill` write to a handle; the file appears whole when it returns, or not at all."""
        if self.is_local:
            write_local(self.local(name), fill, replace)
            return
        with tempfile.TemporaryFile() as spool:
            fill(spool)
            self._send(name, spool)

    def adopt(self, name: str, file: Path) -> None:
        """Make a finished local file, written in `scratch()`, appear as `name`; it is moved or uploaded."""
        if self.is_local:
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
            target = self.local(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
            sync_directory(target.parent)
        else:
            self._put(name, lambda: self.fs.put_file(str(file), self.path(name)))
            file.unlink()

    def copy(self, name: str, source: Store) -> None:
        """Take over the file `name` of another directory of the same filesystem; on a local disk as a hard link."""
        if not self.is_local:
            self._put(name, lambda: self.fs.copy(source.path(name), self.path(name)))
            return
        target = self.local(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(source.local(name))
        except OSError:  # a disk without hard links
            self.write_with(name, lambda handle: shutil.copyfileobj(source.open(name), handle))

    def scratch(self) -> Path:
        """A new local directory for files in the making; on the same disk as the store where it is local."""
        if self.is_local:
            self.local().mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.local() if self.is_local else None))

    def create(self, name: str, data: bytes) -> bool:
        """Write `name` only where nothing is yet; False when something was there first."""
        return self.create_with(name, lambda handle: handle.write(data))

    def create_with(self, name: str, fill: Callable[[IO[bytes]], object]) -> bool:
        """Let `fill` write a whole file only where nothing is yet; False when something was there first.

        On an object store that may be what this very call has written: the answer to a PUT can be lost.
        """
        if self.is_local:
            return write_local(self.local(name), fill, settle)
        with tempfile.TemporaryFile() as spool:
            fill(spool)
            try:
                self._send(name, spool, mode="create")
            except FileExistsError:
                return False
        return True

    def _send(self, name: str, spool: IO[bytes], **how: Any) -> None:
        def send() -> None:
            spool.seek(0)
            self.fs.pipe_file(self.path(name), spool.read(), **how)

        self._put(name, send)

    def _put(self, name: str, send: Callable[[], object]) -> None:
        """Write to an object store; a bucket that does not exist is said, not created."""
        for last in (False, False, True):
            try:
                with reaching(self.at_url(name)):
                    send()
                return
            except (StorageError, FileNotFoundError) as error:
                if not last and any(word in str(cause) for cause in _causes(error) for word in AGAIN):
                    continue
                if isinstance(error, StorageError):
                    raise
                raise StorageError(f"cannot write to {self.at_url(name)}: {error}") from error

    def fetch(self, name: str) -> Path:
        """A local directory with the content of `name`: itself, or this node's copy of what lies there now."""
        if self.is_local:
            return self.local(name)
        target = own_folder("tilth") / self.sub(name)._state()
        if not target.exists():
            partial = Path(tempfile.mkdtemp(dir=target.parent))
            try:
                with reaching(self.at_url(name)):
                    self.fs.get(self.path(name), str(partial), recursive=True)
                inner = partial / posixpath.basename(name)
                with contextlib.suppress(OSError):  # another worker of this node was first: its copy is as good
                    (inner if inner.is_dir() else partial).rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return target

    def _state(self) -> str:
        """A name for what lies here on an object store: another as soon as a file is written anew."""
        with reaching(self.url):
            self.fs.invalidate_cache(self.path())
            found = self.fs.find(self.path(), detail=True)
        marks = {name: next((info[mark] for mark in MARKS if info.get(mark)), "") for name, info in found.items()}
        files = [f"{name} {found[name]['size']} {mark}" for name, mark in sorted(marks.items())]
        return hashlib.sha256("\n".join([self.url, *files]).encode()).hexdigest()[:24]

    def remove(self, name: str = "") -> None:
        """Remove a file or a whole directory, without a name this one; nothing happens where there is none."""
        # where the answer to a first try was lost, the second finds nothing
        with reaching(self.at_url(name)), contextlib.suppress(FileNotFoundError):
            if self.fs.exists(self.path(name)):
                self.fs.rm(self.path(name), recursive=True)


def full(error: BaseException | None) -> bool:
    """Whether a disk is full, which is no fault of the work that met it."""
    return any(
        (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))
        or "No space left on device" in str(cause)  # from another process comes only the text
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
