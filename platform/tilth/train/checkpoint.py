"""Where a worker stands among the others, and where its checkpoints go: Ray Train, or a store without Ray.

Every rank writes to a directory of its own, so that it hands over its own shards only; files that all share
(weights, optimizer, trainer state) come from rank 0. A checkpoint counts once every rank has handed over its part.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tilth.storage import Store

LATEST = "latest.json"


class Link(Protocol):
    """One worker's link to the others and to storage."""

    rank: int
    world: int

    def resume(self) -> Path | None:
        """A local directory with the newest complete checkpoint; None to start anew."""

    def commit(self, folder: Path, step: int) -> None:
        """Hand over this rank's files of the checkpoint at `step`; returns when they are on storage."""


class RayLink:
    """Under Ray Train: a report is a barrier over all ranks, and the checkpoint counts when all have reported."""

    def __init__(self) -> None:
        import ray.train

        self._train = ray.train
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world: int = context.get_world_size()

    def resume(self) -> Path | None:
        checkpoint: Any = self._train.get_checkpoint()
        if checkpoint is None:
            return None
        if checkpoint.filesystem.type_name == "local":
            return Path(checkpoint.path)
        return Path(checkpoint.to_directory())

    def commit(self, folder: Path, step: int) -> None:
        checkpoint = self._train.Checkpoint.from_directory(folder)
        self._train.report({"step": step}, checkpoint=checkpoint, checkpoint_dir_name=f"step-{step:08d}")


@dataclass
class StoreLink:
    """In this process, without Ray: a checkpoint counts when `latest.json` names it."""

    store: Store
    keep: int = 2
    rank: int = 0
    world: int = 1

    def resume(self) -> Path | None:
        latest = self.store.read_json(LATEST)
        return None if latest is None else self.store.fetch(latest["name"])

    def commit(self, folder: Path, step: int) -> None:
        name = f"step-{step:08d}"
        upload(folder, self.store, name)
        self.store.write_json(LATEST, {"name": name, "step": step})
        for old in [item for item in self.store.list() if item.startswith("step-")][: -self.keep]:
            self.store.remove(old)


def upload(folder: Path, store: Store, name: str) -> None:
    """Copy a local directory to `name` in the store, file by file, each whole or not at all."""
    for file in sorted(item for item in folder.rglob("*") if item.is_file()):
        target = f"{name}/{file.relative_to(folder).as_posix()}"
        if store.is_local:
            with file.open("rb") as source:
                store.write_with(target, lambda handle, source=source: shutil.copyfileobj(source, handle))  # type: ignore[misc]
        else:
            store.fs.put_file(str(file), store.path(target))


def scratch() -> Path:
    """A new directory on this node's own disk, for files on their way to storage."""
    return Path(tempfile.mkdtemp(prefix="tilth-train-"))
