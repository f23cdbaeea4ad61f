"""Figures of a run as TensorBoard reads them, and trackers that are not installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.util.metrics import Gauge
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tilth.data.schema import original
from tilth.train.trackers import RayMetrics
from training import dataset, run_stage, stage_of, tiny_llama, trace


def test_tensorboard_shows_the_trace_and_the_held_out_loss(tmp_path: Path) -> None:
    rows = [original(f"{split[0]}{i}", split, {"text": f"seed {i}"}) for split in ("train", "test") for i in range(6)]
    dataset(tmp_path, rows, "text")
    validation = {"split": "test", "every_steps": 2}
    run_stage(tmp_path, stage_of("sft", str(tiny_llama(tmp_path / "model")), {"steps": 4}, validation=validation))
    board = EventAccumulator(str(tmp_path / "train" / "tensorboard")).Reload()
    lines = trace(tmp_path)
    shown = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert shown == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    held_out = [(event.step, event.value) for event in board.Scalars("validation/loss")]
    assert held_out == [(n, pytest.approx(lines[n - 1]["validation_loss"])) for n in (2, 4)]


def test_rank_0_tells_ray_what_it_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, dict[str, str]]] = []

    class Recording(Gauge):
        def set(self, value: float, tags: dict[str, str]) -> None:
            told.append((self.info["name"], value, tags))

    monkeypatch.setattr("ray.util.metrics.Gauge", Recording)
    logs = {"loss": 0.5, "eval_f1/macro": 1, "note": "no number"}
    for rank in (0, 1):
        RayMetrics("sft").on_log(None, SimpleNamespace(is_world_process_zero=rank == 0), None, logs)
    assert told == [("tilth_loss", 0.5, {"stage": "sft"}), ("tilth_eval_f1_macro", 1.0, {"stage": "sft"})]


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    [problem] = stage_of("sft", "x", {}, trackers=["wandb"]).check()
    assert str(problem) == "trackers: wandb is not installed; install it (pip install wandb) or leave it out"
