"""DeepSpeed: what configuration comes of ours, and that it trains to the same weights."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tilth.train.config import Batches, DeepSpeed, Optimisation
from tilth.train.deepspeed import deepspeed_config
from training import dataset, killer, questions, run_stage, stage_of, trace, without_dropout


def config(stage: int, **more: Any) -> dict[str, Any]:
    batches = Batches(workers=2, micro=4, accumulation=3)
    return deepspeed_config(DeepSpeed(stage=stage, **more), Optimisation(global_batch=24), batches)


def test_the_batch_is_that_of_the_recipe() -> None:
    made = config(2)
    assert made["train_batch_size"] == 24
    assert made["train_micro_batch_size_per_gpu"] * made["gradient_accumulation_steps"] * 2 == 24


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_itself_accepts_the_configuration(stage: int) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = config(stage)["zero_optimization"]
    assert DeepSpeedZeroConfig(**zero).stage == stage


def test_offloading_moves_weights_only_where_they_are_partitioned() -> None:
    assert "offload_param" not in config(2, offload=True)["zero_optimization"]
    assert config(3, offload=True)["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert "offload_optimizer" not in config(0, offload=True)["zero_optimization"]


@pytest.mark.slow
@pytest.mark.parametrize("zero", [2, 3])
def test_two_workers_with_zero_train_as_one_without(tmp_path: Path, zero: int, ray_session: Any) -> None:
    model = str(without_dropout(tmp_path / "model"))
    losses = []
    scales = [{"workers": 0, "micro_batch": 4}, {"workers": 2, "cpus": 0.5, "deepspeed": {"stage": zero}}]
    for number, scale in enumerate(scales):
        root = tmp_path / str(number)
        dataset(root, questions(13))
        run_stage(root, stage_of("sft", model, {"epochs": 2}, scale=scale))
        losses.append([line["loss"] for line in trace(root)])
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)


@pytest.mark.slow
def test_partitioned_state_survives_a_killed_worker(tmp_path: Path, ray_session: Any) -> None:
    model = str(without_dropout(tmp_path / "model"))
    runs = []
    for workers in (0, 2):
        root = tmp_path / str(workers)
        dataset(root, questions(61))
        zero = {"workers": 2, "cpus": 0.5, "micro_batch": 4, "deepspeed": {"stage": 2}}
        scale = zero if workers else {"workers": 0, "micro_batch": 4}
        stage = stage_of("sft", model, {"epochs": 3}, scale=scale, checkpointing={"every_steps": 3})
        with killer(root, at=10) if workers else nullcontext([1]) as killed:
            run_stage(root, stage)
        assert killed
        runs.append(trace(root))
    alone, together = runs
    assert [sorted(line["rows"]) for line in together] == [sorted(line["rows"]) for line in alone]
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], abs=5e-3)
