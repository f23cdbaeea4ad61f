"""Making training fit the memory: what DeepSpeed partitions, and what becomes of a micro-batch that is too large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaModel

from tilth import ui
from tilth.data.schema import original
from tilth.errors import StageError
from tilth.train.config import Batches, DeepSpeed, ModelConfig, Optimisation, Scale
from tilth.train.fitting import MICRO, ROOM, batches, shrunk, zero_preset
from tilth.weights import Weights
from training import dataset, job_of, run_stage, stage_of, tiny_llama, trace

GIB = 2**30
SEVEN_BILLION = Weights(7_000_000_000, 28_000_000_000)


def chosen(workers: int, gib: float, **model: Any) -> Any:
    return zero_preset(SEVEN_BILLION, ModelConfig(name="x", **model), Optimisation(), Scale(workers=workers), gib * GIB)


def test_the_least_that_fits_is_partitioned() -> None:
    # 7e9 weights in float32: 28 GB of weights, 28 of gradients, 56 of Adam's moments, 84 with DeepSpeed's copy
    needs = {None: 112, 1: 56 + 84 / 4, 2: 28 + 112 / 4, 3: 140 / 4}
    for stage, gb in needs.items():
        gib = gb * 1e9 / ROOM / GIB
        fits, less = chosen(4, gib * 1.01), chosen(4, gib * 0.99)
        assert (fits.stage if fits else None) == stage
        assert less.stage == {None: 1, 1: 2, 2: 3, 3: 3}[stage]
        assert less.offload == (stage == 3)


def test_one_worker_has_nobody_to_share_with() -> None:
    assert chosen(1, 1000) is None
    alone = chosen(1, 80)
    assert (alone.stage, alone.offload) == (3, True)
    assert chosen(1, 80, lora={"rank": 8}) is None


def test_deepspeed_auto_is_decided_before_training_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path, texts(4), "text")
    scale = {"workers": 0, "micro_batch": 4, "deepspeed": "auto", "memory_gib": 2.0}
    run_stage(tmp_path, stage(str(tiny_llama(tmp_path / "model")), scale=scale, steps=1))
    assert "train: no DeepSpeed for " in capsys.readouterr().err


def texts(count: int) -> list[dict[str, Any]]:
    return [original(f"t{i}", "train", {"text": f"seed number {i} of the field"}) for i in range(count)]


def stage(model: str, scale: dict[str, Any], steps: int = 4) -> Any:
    checkpoints = {"every_steps": 1}
    return stage_of("sft", model, {"steps": steps, "global_batch": 8}, checkpointing=checkpoints, scale=scale)


class SmallMemory:
    """Llama's forward pass on a device that holds only so many rows, the first `spared` passes excepted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int, spared: int = 0) -> None:
        forward, self.passes = LlamaModel.forward, 0

        def limited(model: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
            self.passes += 1
            if input_ids.shape[0] > rows and self.passes > spared:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return forward(model, input_ids, *args, **kwargs)

        monkeypatch.setattr(LlamaModel, "forward", limited)


@pytest.mark.long
def test_rows_that_do_not_fit_are_taken_fewer_at_once_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_llama(tmp_path / "model"))
    monkeypatch.setattr(ui, "_current", [ui.Reporter("plain")])
    runs = []
    for name, micro in (("roomy", 2), ("tight", 8)):
        root = tmp_path / name
        dataset(root, texts(16), "text")
        if name == "tight":
            SmallMemory(monkeypatch, rows=2, spared=2)  # two steps of eight rows pass, then the memory is full
        made = run_stage(root, stage(model, {"workers": 0, "micro_batch": micro}))
        runs.append(trace(root))
    roomy, tight = runs
    assert [line["rows"] for line in tight] == [line["rows"] for line in roomy]
    assert [line["loss"] for line in tight] == pytest.approx([line["loss"] for line in roomy], abs=1e-5)
    assert made.detail["micro_batch"] == {"rows": 2, "too_many": 8}
    said = capsys.readouterr().err
    assert "train: 8 rows at once do not fit the device's memory; each worker now takes 2, 4 times a step" in said


def test_a_smaller_micro_batch_is_kept_below_the_recipes_own_and_divides_the_share_of_any_number_of_workers(
    tmp_path: Path,
) -> None:
    dataset(tmp_path, texts(24), "text")
    model = str(tiny_llama(tmp_path / "model"))
    scale = {"workers": 3, "min_workers": 2}
    job = job_of(tmp_path, stage_of("sft", model, {"global_batch": 24}, scale=scale))
    job.out.write_json(MICRO, {"fingerprint": job.fingerprint, "rows": 3, "first": 6})
    assert batches(job, 2) == Batches(2, 3, 4)
    assert batches(job, 3) == Batches(3, 2, 4)
    lowered = job_of(tmp_path, stage_of("sft", model, {"global_batch": 24}, scale={**scale, "micro_batch": 1}))
    assert lowered.fingerprint == job.fingerprint
    assert batches(lowered, 2) == Batches(2, 1, 12)


def test_a_reference_point_is_not_made_of_fewer_answers(tmp_path: Path) -> None:
    pairs = [original(f"p{i}", "train", {"prompt": "say:", "chosen": " yes", "rejected": " no"}) for i in range(8)]
    dataset(tmp_path, pairs, "preference")
    model = str(tiny_llama(tmp_path / "model"))
    kto = stage_of("kto", model, {"global_batch": 8}, exchange=8, scale={"workers": 0, "micro_batch": 8})
    job = job_of(tmp_path, kto)
    error = shrunk(job, batches(job, 1))
    assert "too small for the 8 rows that belong together at once" in str(error)
    assert not job.out.exists(MICRO)


def test_one_row_that_does_not_fit_is_an_error_with_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(tmp_path, texts(8), "text")
    model = str(tiny_llama(tmp_path / "model"))
    SmallMemory(monkeypatch, rows=0)
    with pytest.raises(StageError, match=r"too small for one row at once; set scale.gradient_checkpointing"):
        run_stage(tmp_path, stage(model, {"workers": 0, "micro_batch": 4}))


def test_offloading_activations_asks_for_a_gpu() -> None:
    [problem] = Scale(activation_offload=True).check()
    assert problem.mend == "set it to false, or gpus to 1"
    assert Scale(activation_offload=True, gpus=1).check() == []


def test_an_elastic_job_needs_a_batch_that_divides_over_every_number_of_workers() -> None:
    scale = Scale(workers=4, min_workers=2)
    assert scale.batch_problem(24) is None
    problem = scale.batch_problem(32)
    assert problem is not None
    assert (problem.what, problem.mend) == ("global batch 32 is not divisible by 3 workers", "use 24 or 36")
    [more] = Scale(workers=2, min_workers=3).check()
    assert "3 is more than workers: 2" in str(more)
    [partitioned] = Scale(workers=2, min_workers=1, deepspeed=DeepSpeed(stage=2)).check()
    assert "fits only as many workers" in str(partitioned)
    assert not Scale(workers=2, min_workers=1, deepspeed=DeepSpeed(stage=0)).check()
