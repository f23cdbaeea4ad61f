"""Checkpoints are read only as they were written; one that is damaged is passed over for the one before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilth.storage import Store
from tilth.train.checkpoint import StoreLink, damage
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
