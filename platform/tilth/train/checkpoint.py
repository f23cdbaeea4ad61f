"""Where a worker stands among the others, and where its checkpoints go: Ray Train, or a store without Ray.

Every rank writes to a directory of its own, so that it hands over its own shards only; files that all share
(weights, optimizer, trainer state) come from rank 0. A checkpoint counts once every rank has handed over its part.

With its files each rank hands over their SHA-256. A checkpoint that does not agree with them when it is read (a disk
that filled, a file that somebody touched) is passed over for the one before it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from tilth import ui
from tilth.content import sha256
from tilth.storage import Store

LATEST = "latest.json"


class Link(Protocol):
    """One worker's link to the others and to storage."""

    rank: int
    world: int

    def resume(self) -> Path | None:
        """A local directory with the newest complete checkpoint; None to start anew."""

    def commit(self, folder: Path, step: int) -> None:
        """Hand over this rank's files of the checkpoint at `step`, and with them the folder: it is removed."""

    def settle(self) -> None:
        """Return when all that was handed over is on storage."""

    def preempted(self) -> bool:
        """Whether since it was last asked word came that a worker's node is about to be taken away.

        All ranks must ask equally often, and are told the same.
        """


class RayLink:
    """Under Ray Train: a checkpoint counts when all ranks have reported it.

    It is uploaded while training goes on; one is under way at a time, so that local disks hold two at most. Where Ray
    Train has none yet, that of an earlier attempt in `before` is taken up, as of a pack that ended before its time.
    """

    def __init__(self, before: Store | None = None) -> None:
        import ray.train

        self._before = before

        self._train = ray.train
        self._under_way = self._warned = False
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world: int = context.get_world_size()

    def resume(self) -> Path | None:
        checkpoint: Any = self._train.get_checkpoint()
        if checkpoint is None:
            return None if self._before is None else StoreLink(self._before).resume()
        return _newest_sound(_up_to(checkpoint))

    def commit(self, folder: Path, step: int) -> None:
        self.settle()
        seal(folder, self.rank)
        self._train.report(
            {"step": step},
            checkpoint=self._train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step-{step:08d}",
            checkpoint_upload_mode=self._train.CheckpointUploadMode.ASYNC,
        )
        self._under_way = True

    def settle(self) -> None:
        if self._under_way:
            self._train.get_all_reported_checkpoints(self._train.CheckpointConsistencyMode.COMMITTED)
        self._under_way = False

    def preempted(self) -> bool:
        before, self._warned = self._warned, self._train.get_preemption_info() is not None
        return self._warned and not before


@dataclass
class StoreLink:
    """In this process, without Ray: a checkpoint counts when `latest.json` names it."""

    store: Store
    keep: int = 2
    rank: int = 0
    world: int = 1

    def resume(self) -> Path | None:
        latest = self.store.read_json(LATEST)
        if latest is None:
            return None
        names = [name for name in self._names() if name <= latest["name"]]
        return _newest_sound((name, self.store.fetch(name)) for name in reversed(names))

    def _names(self) -> list[str]:
        return sorted(name for name in self.store.list() if name.startswith("step-"))

    def commit(self, folder: Path, step: int) -> None:
        seal(folder, self.rank)
        name = f"step-{step:08d}"
        upload(folder, self.store, name)
        if self.world > 1:  # it is complete once all have handed over theirs
            import torch.distributed

            torch.distributed.barrier()
        if self.rank == 0:
            self.store.write_json(LATEST, {"name": name, "step": step})
            for old in self._names()[: -self.keep]:
                self.store.remove(old)
        shutil.rmtree(folder)

    def settle(self) -> None:
        """Nothing is left to wait for: `commit` uploads before it returns."""

    def preempted(self) -> bool:
        return False


def seal(folder: Path, rank: int) -> None:
    """Write the SHA-256 of this rank's files beside them; a list that a killed attempt has left is none of them."""
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    sums = {name: sha256(folder / name) for name in found if not fnmatch(name, "sha256-*.json")}
    (folder / f"sha256-{rank}.json").write_text(json.dumps(sums, indent=1, sort_keys=True), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What of a checkpoint does not agree with what was handed over; None where all does."""
    lists = sorted(folder.glob("sha256-*.json"))
    if not lists:
        return "it has no list of its files"
    for file in lists:
        try:
            sums = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            return f"{file.name} is damaged"
        for name, expected in sums.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if sha256(folder / name) != expected:
                return f"{name} is not as it was written"
    return None


def _up_to(checkpoint: Any) -> Iterator[tuple[str, Path]]:
    """The names of a checkpoint of Ray Train and of those before it, the newest first, each in a local directory."""
    from pyarrow.fs import FileSelector

    newest = PurePosixPath(checkpoint.path)
    there = checkpoint.filesystem.get_file_info(FileSelector(str(newest.parent)))
    names = (item.base_name for item in there)
    for name in sorted((name for name in names if name.startswith("step-") and name <= newest.name), reverse=True):
        path = newest.parent / name
        if checkpoint.filesystem.type_name == "local":
            yield name, Path(path)
        else:  # of the very one that all ranks were told, those of a node share their copy
            older = name != newest.name
            one = type(checkpoint)(str(path), checkpoint.filesystem) if older else checkpoint
            yield name, Path(one.to_directory())


def _newest_sound(found: Iterable[tuple[str, Path]]) -> Path | None:
    """The first checkpoint that holds what was handed over; says which do not."""
    for name, folder in found:
        if (fault := damage(folder)) is None:
            return folder
        ui.reporter().say(f"checkpoint {name} is passed over: {fault}")
    return None


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
