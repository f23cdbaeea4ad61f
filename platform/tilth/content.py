"""The identity of things outside the recipe: data files and models, by content."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from tilth.config import Content, DataPath, FunctionName, ModelName
from tilth.errors import StorageError
from tilth.paths import filesystem, local_files, no_match, reaching, remote_files

#: what stores say of a file that changes with its content
_MARKS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "LastModified", "mtime")


def cache_dir() -> Path:
    """Where Tilth keeps models and hashes: `$TILTH_CACHE`, else `~/.cache/tilth`."""
    return Path(os.environ.get("TILTH_CACHE") or Path.home() / ".cache" / "tilth")


def identity_of(value: str) -> Any:
    """The content identity of a ModelName, DataPath, FunctionName or Content."""
    if isinstance(value, Content):
        return value.content()
    if isinstance(value, DataPath):
        return files_identity(value)
    if isinstance(value, ModelName):
        from tilth import models

        return models.identity(value)
    if isinstance(value, FunctionName):
        return {str(value): _source_hash(value.partition(":")[0])}
    return str(value)


def _source_hash(module: str) -> str | None:
    """The content of a module's file; None where it has none, as a built-in one."""
    spec = importlib.util.find_spec(module)
    return file_hash(Path(spec.origin)) if spec is not None and spec.has_location and spec.origin else None


def files_identity(pattern: str) -> str:
    """One hash over the content of every file that the path, glob or URI matches; order and names do not count."""
    if "://" in pattern:
        hashes = [_remote_hash(url) for url, _ in remote_files(pattern)]
    else:
        hashes = [file_hash(Path(name)) for name in local_files(pattern)[0]]
    if not hashes:
        raise StorageError(f"{no_match(pattern)}; check the path")
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()[:32]


def _remote_hash(url: str) -> str:
    """The content as the store itself marks it; read and hashed where it marks nothing."""
    fs, name = filesystem(url)
    with reaching(url):
        info = fs.info(name)
        mark = next((info[key] for key in _MARKS if info.get(key)), None)
        if mark is not None:
            return hashlib.sha256(f"{info['size']}:{mark}".encode()).hexdigest()
        with fs.open(name, "rb") as handle:
            digest = hashlib.sha256()
            for data in iter(partial(handle.read, 1 << 20), b""):
                digest.update(data)
        return digest.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file as it lies there now."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, remembered by path, size and times so that a second plan is immediate."""
    stat = path.stat()
    # with the time of the last change of any kind, which no copying program can set back as it does the other
    key = hashlib.sha256(
        f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}".encode()
    ).hexdigest()
    memory = cache_dir() / "hashes" / key[:2] / key
    try:
        known: str = json.loads(memory.read_text())
        return known
    except (OSError, ValueError):
        found = sha256(path)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(json.dumps(found))
    except OSError:
        return found  # a read-only home only costs the next hash
    return found
