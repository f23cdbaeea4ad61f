"""Whatever dies, a training run goes on from its checkpoint as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from object_stores import gcs, s3
from tilth.data.loading import load_trained
from tilth.storage import Store
from training import MINILM, dataset, die, killer, questions, run_stage, stage_of, trace

STEPS = 24
ADAPTER = {"name": MINILM, "lora": {"rank": 4, "dropout": 0.1}}


def stage(workers: int = 0, **scale: Any) -> Any:
    """LoRA with dropout on MiniLM, three epochs of eight steps, a checkpoint every third step."""
    sizes = {"workers": workers, "micro_batch": 4, "cpus": 0.5, **scale}
    return stage_of("sft", ADAPTER, {"epochs": 3}, checkpointing={"every_steps": 3, "keep": 2}, scale=sizes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The trace of a run that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    dataset(root, questions(61))
    run_stage(root, stage())
    return trace(root)


def test_the_trace_names_every_row_once_in_each_epoch(whole: list[dict[str, Any]]) -> None:
    for epoch in range(3):
        rows = [row for line in whole[epoch * 8 : epoch * 8 + 8] for row in line["rows"]]
        assert sorted(rows) == sorted(row["id"] for row in questions(61))
    assert [line["step"] for line in whole] == list(range(1, STEPS + 1))


@pytest.mark.long
def test_a_killed_driver_is_run_again_to_the_same_trace(tmp_path: Path, whole: list[dict[str, Any]]) -> None:
    dataset(tmp_path, questions(61))
    die(tmp_path, stage(), step=10)
    assert (tmp_path / "train" / "checkpoints").is_dir()
    run_stage(tmp_path, stage())
    assert trace(tmp_path) == whole


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_trace_is_the_same(
    tmp_path: Path, whole: list[dict[str, Any]], ray_session: Any
) -> None:
    dataset(tmp_path, questions(61))
    with killer(tmp_path, at=10) as killed:
        run_stage(tmp_path, stage(workers=1))
    assert killed
    assert trace(tmp_path) == whole


@pytest.mark.slow
def test_a_killed_driver_of_ray_workers_is_run_again_to_the_same_trace(
    tmp_path: Path, whole: list[dict[str, Any]], ray_session: Any
) -> None:
    dataset(tmp_path, questions(61))
    die(tmp_path, stage(workers=1), step=10)
    run_stage(tmp_path, stage(workers=1))
    assert trace(tmp_path) == whole


@pytest.mark.slow
def test_fewer_workers_go_on_where_more_of_them_stopped(
    tmp_path: Path, whole: list[dict[str, Any]], ray_session: Any
) -> None:
    dataset(tmp_path, questions(61))
    die(tmp_path, stage(workers=2), step=10)
    run_stage(tmp_path, stage(workers=1))
    lines = trace(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [sorted(line["rows"]) for line in lines] == [sorted(line["rows"]) for line in whole]


def test_a_finished_result_is_taken_only_for_its_own_fingerprint(tmp_path: Path) -> None:
    dataset(tmp_path, questions(16))
    short = stage_of("sft", ADAPTER, {"steps": 2})
    first = run_stage(tmp_path, short)
    assert run_stage(tmp_path, short).metrics == first.metrics
    longer = run_stage(tmp_path, stage_of("sft", ADAPTER, {"steps": 3}))
    assert longer.metrics["steps"] == 3


@pytest.mark.parametrize("kind", [s3, gcs])
def test_an_object_store_holds_checkpoints_and_the_model(kind: Any) -> None:
    with kind() as bucket:
        store = Store.at(f"{bucket}/training")
        dataset(store.url, questions(16))
        run_stage(store.url, stage_of("sft", ADAPTER, {"epochs": 2}, checkpointing={"every_steps": 1}))
        assert [line["step"] for line in trace(store.url)] == [1, 2, 3, 4]
        assert load_trained(store.sub("train").fetch("model")).labels == ("card", "exchange rate", "transfer")
