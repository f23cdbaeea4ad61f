"""The identity of things outside the recipe: data files and models, by content."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import fsspec

from tilth.config import DataPath, ModelName
from tilth.errors import StorageError


def cache_dir() -> Path:
    """Where Tilth keeps models and hashes: `$TILTH_CACHE`, else `~/.cache/tilth`."""
    return Path(os.environ.get("TILTH_CACHE") or Path.home() / ".cache" / "tilth")


def identity_of(value: str) -> Any:
    """The content identity of a ModelName or DataPath."""
    if isinstance(value, DataPath):
        return files_identity(value)
    if isinstance(value, ModelName):
        from tilth import models

        return models.identity(value)
    return str(value)


def files_identity(pattern: str) -> str:
    """One hash over the content of every file that the path, glob or URI matches; order and names do not count."""
    fs, path = fsspec.core.url_to_fs(pattern)
    names = matches(fs, path)
    if not names:
        raise StorageError(f"no file matches {pattern!r} (looked from {Path.cwd()}); check the path")
    hashes = sorted(_file_identity(fs, name) for name in names)
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:32]


def matches(fs: Any, path: str) -> list[str]:
    """The files under a path: itself, a glob's matches, or a directory's files, sorted."""
    if any(mark in path for mark in "*?["):
        return sorted(name for name in fs.glob(path) if not fs.isdir(name))
    if fs.isdir(path):
        return sorted(name for name in fs.find(path) if not Path(name).name.startswith((".", "_")))
    return [path] if fs.exists(path) else []


def _file_identity(fs: Any, name: str) -> str:
    info = fs.info(name)
    if "local" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        return file_hash(Path(name))
    mark = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("LastModified") or info.get("mtime")
    return hashlib.sha256(f"{info['size']}:{mark}".encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, remembered by path, size and time so that a second plan is immediate."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()
    memory = cache_dir() / "hashes" / key[:2] / key
    try:
        known: str = json.loads(memory.read_text())
        return known
    except (OSError, ValueError):
        with open(path, "rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(json.dumps(found))
    except OSError:
        return found  # a read-only home only costs the next hash
    return found
