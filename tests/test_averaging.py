"""An average of the weights, and a learning rate found before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tilth.data.loading import load_pretrained
from tilth.data.schema import original
from tilth.errors import StageError
from tilth.storage import Store
from tilth.train.launch import CHECKPOINTS
from tilth.train.range_test import suggested
from tilth.train.worker import train
from training import Dying, dataset, job_of, questions, run_stage, stage_of, tiny_llama, trace


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"name": str(tiny_llama(tmp_path_factory.mktemp("llama")))}


def weights(root: Path) -> dict[str, torch.Tensor]:
    state = load_pretrained(Store.at(root).sub("train").fetch("model"), "classification", ("a", "b", "c")).model
    return {name: value.clone() for name, value in state.state_dict().items()}


def trained(root: Path, model: dict[str, str], optimisation: dict[str, Any], **fields: Any) -> dict[str, torch.Tensor]:
    dataset(root, questions(8))
    run_stage(root, stage_of("sft", model, {"global_batch": 4, "scheduler": "constant", **optimisation}, **fields))
    return weights(root)


@pytest.mark.parametrize("averaging", [{"decay": 0.75}, {"decay": None, "begin": 0.34}], ids=["exponential", "mean"])
@pytest.mark.long
def test_the_average_is_that_of_the_weights_after_each_step(
    tmp_path: Path, llama: dict[str, str], averaging: dict[str, Any]
) -> None:
    after = [trained(tmp_path / str(n), llama, {"steps": n}) for n in range(1, 4)]
    found = trained(tmp_path / "average", llama, {"steps": 3, "averaging": averaging})
    for name, value in found.items():
        steps = [one[name] for one in after]
        expected = steps[0]
        if averaging["decay"] is None:
            expected = torch.stack(steps[1:]).mean(0)
        else:
            for step in steps[1:]:
                expected = 0.75 * expected + 0.25 * step
        assert torch.allclose(value, expected, rtol=1e-5, atol=1e-7), name


@pytest.mark.long
def test_a_stopped_run_leaves_the_same_average_and_validates_it(tmp_path: Path, llama: dict[str, str]) -> None:
    rows = [*questions(8), *questions(4, "validation")]
    optimisation = {"steps": 5, "global_batch": 4, "averaging": {"decay": 0.5}}
    fields = {"checkpointing": {"every_steps": 3}, "validation": "validation"}
    stage = stage_of("sft", llama, optimisation, **fields)
    found = []
    for name in ("whole", "stopped"):
        root = tmp_path / name
        dataset(root, rows)
        if name == "stopped":
            job = job_of(root, stage)
            with pytest.raises(KeyboardInterrupt):
                train(job, Dying(job.out.sub(f"{CHECKPOINTS}/{job.fingerprint[:16]}")))
        artifact = run_stage(root, stage)
        found.append((weights(root), artifact.metrics["validation_loss"]))
    assert all(torch.equal(found[0][0][name], value) for name, value in found[1][0].items())
    assert found[0][1] == found[1][1]
    last = tmp_path / "last"
    dataset(last, rows)
    plain = run_stage(last, stage_of("sft", llama, {**optimisation, "averaging": None}, **fields))
    assert plain.metrics["validation_loss"] != found[0][1]


def test_a_rate_that_is_found_trains_as_the_same_rate_given(tmp_path: Path, llama: dict[str, str]) -> None:
    for name in ("auto", "given"):
        dataset(tmp_path / name, questions(24))
    found = run_stage(tmp_path / "auto", stage_of("sft", llama, {"steps": 4, "learning_rate": "auto"}))
    rate = found.metrics["learning_rate"]
    rates, losses = zip(*found.detail["range_test"], strict=True)
    assert rate == pytest.approx(rates[losses.index(min(losses))] / 10)
    assert min(losses) < losses[0]
    run_stage(tmp_path / "given", stage_of("sft", llama, {"steps": 4, "learning_rate": rate}))
    assert trace(tmp_path / "auto") == trace(tmp_path / "given")


@pytest.mark.slow
def test_a_rate_is_found_by_several_workers_together(tmp_path: Path, ray_session: Any) -> None:
    """TRL's losses gather what all workers hold: one that tests alone would wait for the others for ever."""
    folder = str(tiny_llama(tmp_path / "model"))
    rows = [original(f"c{i}", "train", {"prompt": f"Thing {i} is", "completion": " green."}) for i in range(16)]
    dataset(tmp_path, rows, "completion")
    scale = {"workers": 2, "cpus": 0.5}
    settings = {"steps": 2, "global_batch": 8, "learning_rate": "auto"}
    found = run_stage(tmp_path, stage_of("sft", folder, settings, scale=scale))
    losses = [loss for _, loss in found.detail["range_test"]]
    assert min(losses) < losses[0]
    assert trace(tmp_path)[0]["learning_rate"] == pytest.approx(found.metrics["learning_rate"])


def test_no_rate_is_made_up() -> None:
    assert suggested([(1e-4, 3.0), (1e-3, 1.0), (1e-2, 9.0)]) == pytest.approx(1e-4)
    with pytest.raises(StageError, match="no rate at which the loss falls"):
        suggested([(1e-4, 1.0), (1e-3, 2.0)])
