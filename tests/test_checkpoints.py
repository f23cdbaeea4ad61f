"""Checkpoints are read only as they were written; one that is damaged is passed over for the one before it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tilth.storage import Store
from tilth.train.checkpoint import RayLink, StoreLink, damage, seal
from tilth.train.launch import CHECKPOINTS
from tilth.train.worker import train
from training import dataset, job_of, questions, stage_of, tiny_llama


@pytest.fixture
def link(tmp_path: Path) -> StoreLink:
    """Checkpoints of steps 3, 6 and 9, of which two are kept."""
    found = StoreLink(Store.at(tmp_path / "store"), keep=2)
    for step in (3, 6, 9):
        folder = tmp_path / f"local-{step}"
        (folder / "shards").mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(range(256)) * step)
        (folder / "shards" / "rank-0").write_text(f"step {step}")
        found.commit(folder, step)
    return found


def test_what_a_killed_write_left_is_in_no_listing(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    store.write("looks/00000010.json", b"{}")
    (tmp_path / "looks/.00000020.json.ab12.tmp").write_bytes(b"{")
    assert store.list("looks") == ["00000010.json"]


def test_the_newest_is_taken_and_the_last_ones_are_kept(link: StoreLink, tmp_path: Path) -> None:
    found = link.resume()
    assert found is not None
    assert (found / "shards" / "rank-0").read_text() == "step 9"
    assert sorted(path.name for path in (tmp_path / "store").glob("step-*")) == ["step-00000006", "step-00000009"]


@pytest.mark.parametrize("fault", ["a bit", "a missing file", "no list"])
def test_a_damaged_one_is_passed_over(
    link: StoreLink, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = tmp_path / "store" / "step-00000009"
    if fault == "a bit":
        data = bytearray((newest / "weights").read_bytes())
        data[700] ^= 1
        (newest / "weights").write_bytes(data)
    else:
        (newest / ("weights" if fault == "a missing file" else "sha256-0.json")).unlink()
    found = link.resume()
    assert found is not None
    assert (found / "shards" / "rank-0").read_text() == "step 6"
    assert "checkpoint step-00000009 is passed over" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["local", "object store"])
def test_a_damaged_one_of_ray_train_is_passed_over_too(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem
    from ray.train import Checkpoint

    store = Store.at(tmp_path / "store" if where == "local" else f"memory://{tmp_path.name}/store")
    filesystem = LocalFileSystem() if where == "local" else PyFileSystem(FSSpecHandler(MemoryFileSystem()))
    written = StoreLink(store, keep=4)
    for step in (3, 6, 9, 12):
        (tmp_path / "local").mkdir()
        (tmp_path / "local" / "weights").write_bytes(bytes(range(256)) * step)
        written.commit(tmp_path / "local", step)
    for damaged in ("step-00000006", "step-00000009"):
        store.write(f"{damaged}/weights", b"something else")
    newest: Any = Checkpoint(store.path("step-00000009"), filesystem)
    link = RayLink.__new__(RayLink)
    link._train = SimpleNamespace(get_checkpoint=lambda: newest)  # what workers of Ray Train are told
    found = link.resume()
    assert found is not None
    assert (found / "weights").read_bytes() == bytes(range(256)) * 3
    said = capsys.readouterr().err
    assert "checkpoint step-00000009 is passed over: weights is not as it was written" in said
    assert "step-00000012" not in said


def test_training_begins_anew_where_none_is_sound(link: StoreLink, tmp_path: Path) -> None:
    for folder in (tmp_path / "store").glob("step-*"):
        (folder / "weights").write_bytes(b"")
        assert damage(folder) == "weights is not as it was written"
    assert link.resume() is None


class LeavingNode(StoreLink):
    """Hears at the third time of asking that its node is about to go."""

    asked = 0

    def preempted(self) -> bool:
        self.asked += 1
        return self.asked == 3


def test_what_was_learnt_is_saved_when_a_node_is_about_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilth.train.watch.NOTICE_SECONDS", 0.0)
    dataset(tmp_path, questions(8))
    base = {"name": str(tiny_llama(tmp_path / "llama"))}
    job = job_of(tmp_path, stage_of("sft", base, {"steps": 5, "global_batch": 4}, checkpointing={"every_steps": 100}))
    link = LeavingNode(job.out.sub(CHECKPOINTS))
    train(job, link)
    assert job.out.list(CHECKPOINTS) == ["latest.json", "step-00000003"]


def test_what_a_killed_attempt_had_sealed_is_sealed_again(tmp_path: Path) -> None:
    for text in ("one", "another"):
        (tmp_path / "weights").write_text(text)
        seal(tmp_path, 0)
        assert damage(tmp_path) is None
