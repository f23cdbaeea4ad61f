"""What travels with a job: which files, how large, and their one hash. Ray's own rules decide; imports ray."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, _dir_travel, _get_excludes

from tilth.content import sha256
from tilth.errors import Problem, RecipeError

_SILENT = logging.Logger("silent", logging.CRITICAL)  # Ray tells of every ignore file that it reads
#: what Python writes beside the code as it runs: sent along, it would make the same code a new job each time, and a
#: file that appears between Ray's two readings of a package makes the job name a package that was never sent. Ray
#: itself leaves it out of the working directory alone.
COMPILED = ("__pycache__",)
#: how many of the largest files are named
NAMED = 5


@dataclass(frozen=True)
class Upload:
    """The files of one folder that would travel, with their sizes in bytes."""

    folder: Path
    files: dict[Path, int]

    @staticmethod
    def of(folder: Path, excludes: Sequence[str] = ()) -> Upload:
        """What of a folder travels: all but what `excludes`, .gitignore and .rayignore name, as Ray reads them."""
        found: list[Path] = []
        gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
        _dir_travel(
            folder, [_get_excludes(folder, list(excludes))], found.append, include_gitignore=gitignore, logger=_SILENT
        )
        return Upload(folder, {path: path.stat().st_size for path in sorted(found) if path.is_file()})

    @property
    def size(self) -> int:
        return sum(self.files.values())

    def digest(self) -> str:
        """SHA-256 over the names and contents of all files."""
        whole = hashlib.sha256()
        for path in self.files:
            whole.update(f"{path.relative_to(self.folder).as_posix()} {sha256(path)}\n".encode())
        return whole.hexdigest()

    def problem(self, most: int = GCS_STORAGE_MAX_SIZE) -> Problem | None:
        """What to leave out where the folder is larger than the cluster takes (`most` bytes)."""
        if self.size < most:
            return None
        largest = sorted(self.files, key=lambda path: -self.files[path])[:NAMED]
        named = ", ".join(f"{path.relative_to(self.folder)} ({readable(self.files[path])})" for path in largest)
        return Problem(
            str(self.folder),
            f"{readable(self.size)} in {len(self.files):,} files would travel, Ray takes less than {readable(most)}; "
            f"the largest: {named}",
            f"name what the job does not need in {self.folder / '.rayignore'}, and put data and models on storage",
        )


def uploads(working_dir: str, packages: Sequence[str]) -> dict[str, Upload]:
    """All that travels, by where it lies here. RecipeError where Ray would refuse it, with the largest files."""
    found = {working_dir: Upload.of(Path(working_dir), get_runtime_env_default_excludes())}
    found |= {package: Upload.of(Path(package), COMPILED) for package in packages}
    wrong = [problem for upload in found.values() if (problem := upload.problem()) is not None]
    if wrong:
        raise RecipeError(wrong)
    return found


def carried(packages: Sequence[str]) -> dict[str, Any]:
    """The part of a runtime_env by which the folders of packages travel with a job."""
    return {"py_modules": list(packages), "excludes": list(COMPILED)}


def readable(size: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
