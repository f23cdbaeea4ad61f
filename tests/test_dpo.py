"""Learning from preferences: the margin grows, the reference stays, and what is left is a language model."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tilth.data.loading import load_pretrained, load_trained
from tilth.data.schema import original
from tilth.errors import StageError
from tilth.storage import Store
from tilth.train.unpaired import WatchedKTOTrainer
from tiny import model_folder
from training import dataset, questions, run_stage, stage_of, trace


def pairs(count: int, split: str = "train") -> list[dict[str, Any]]:
    return [
        original(f"{split}{i}", split, {"prompt": f"say {i}:", "chosen": " yes please", "rejected": " no"})
        for i in range(count)
    ]


def log_probability(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    ids = [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
    start = len(tokenizer(prompt)["input_ids"])
    with torch.inference_mode():
        said = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(said[at - 1, ids[at]].item() for at in range(start, len(ids)))


@pytest.mark.parametrize(
    "method", [{}, {"lora": {"rank": 4}}, {"bottleneck": {"width": 4}}], ids=["full", "lora", "bottleneck"]
)
def test_the_margin_grows_over_a_reference_that_stays(tmp_path: Path, method: dict[str, Any]) -> None:
    base = model_folder(tmp_path / "llama", "llama")
    dataset(tmp_path, [*pairs(9), *pairs(1, "validation")], "preference")
    settings = {"epochs": 4, "global_batch": 4, "learning_rate": 0.01}
    stage = stage_of("dpo", {"name": str(base), **method}, settings, validation="validation")
    made = run_stage(tmp_path, stage)
    lines = trace(tmp_path)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # nothing is preferred yet
    assert lines[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert made.metrics["reward_margin"] > 0.01
    # nine pairs in three steps of four: what fills up is in no figure
    assert made.metrics["reward_accuracy"] == 1.0
    for line in lines[-3:]:
        assert line["loss"] == pytest.approx(math.log1p(math.exp(-line["reward_margin"])), rel=0.02)
    assert made.counts == {"rows": 9, "rows_seen": 9}
    loaded = load_trained(Store.at(tmp_path).sub("train").fetch("model"), device="cpu")
    assert loaded.objective == "language_model"
    # the loss of the held-out pair, by the paper's formula
    reference, [row] = load_pretrained(base, "language_model").model.eval(), pairs(1, "validation")
    gain = [
        log_probability(loaded.model, loaded.tokenizer, row["prompt"], row[name])
        - log_probability(reference, loaded.tokenizer, row["prompt"], row[name])
        for name in ("chosen", "rejected")
    ]
    assert gain[0] > gain[1]
    assert made.metrics["validation_loss"] == pytest.approx(math.log1p(math.exp(-0.1 * (gain[0] - gain[1]))), rel=1e-3)


@pytest.mark.parametrize("loss", ["kto", "apo_zero"])
def test_answers_are_learnt_from_one_by_one(tmp_path: Path, loss: str) -> None:
    base = model_folder(tmp_path / "llama", "llama")
    dataset(tmp_path, [*pairs(9), *pairs(1, "validation")], "preference")
    settings = {"epochs": 4, "global_batch": 4, "learning_rate": 0.01}
    fields = {"validation": "validation", "loss": loss, "exchange": 4}
    made = run_stage(tmp_path, stage_of("kto", {"name": str(base), "lora": {"rank": 4}}, settings, **fields))
    assert trace(tmp_path)[0]["loss"] == pytest.approx(0.5, abs=1e-4)  # nothing is better than the reference yet
    assert made.counts == {"rows": 9, "rows_seen": 9}
    seen = [row for line in trace(tmp_path)[:5] for row in line["rows"]]
    assert sorted(seen) == sorted(2 * [f"train{i}" for i in range(9)])
    if loss == "kto":
        return
    loaded = load_trained(Store.at(tmp_path).sub("train").fetch("model"), device="cpu")
    reference, [row] = load_pretrained(base, "language_model").model.eval(), pairs(1, "validation")
    chosen, rejected = (
        log_probability(loaded.model, loaded.tokenizer, row["prompt"], row[name])
        - log_probability(reference, loaded.tokenizer, row["prompt"], row[name])
        for name in ("chosen", "rejected")
    )
    assert chosen > rejected
    expected = (1 - 1 / (1 + math.exp(-0.1 * chosen)) + 1 / (1 + math.exp(-0.1 * rejected))) / 2
    assert made.metrics["validation_loss"] == pytest.approx(expected, rel=1e-3)


def gains(trainer: Any, inputs: dict[str, Any], kind: str) -> torch.Tensor:
    """How much more likely each completion is than it was to the model without its adapter, by plain means."""
    ids, asked = inputs[f"{kind}input_ids"], inputs[f"{kind}completion_mask"][:, 1:]
    said = []
    for context in (nullcontext(), trainer.model.disable_adapter()):
        with context, torch.no_grad():
            logits = trainer.model(input_ids=ids, attention_mask=inputs[f"{kind}attention_mask"]).logits
        found = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        said.append((found * asked).sum(-1))
    return said[0] - said[1]


@pytest.mark.parametrize("loss", ["kto", "apo_zero"])
def test_what_fills_up_a_step_moves_neither_the_reference_point_nor_what_is_told(tmp_path, monkeypatch, loss) -> None:
    by_hand: list[dict[str, float]] = []
    own = WatchedKTOTrainer._compute_loss

    def spied(self: Any, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        found = own(self, model, inputs, return_outputs)
        real = inputs["completion_mask"].any(1)
        gained, good = 0.1 * gains(self, inputs, "")[real], inputs["label"].bool()[real]
        point = 0.1 * gains(self, inputs, "KL_")[real].mean().clamp(min=0) if loss == "kto" else torch.tensor(0.0)
        losses = torch.where(good, 1 - (gained - point).sigmoid(), 1 - (point - gained).sigmoid())
        margin = gained[good].mean() - gained[~good].mean()
        by_hand.append({"rows": len(gained), "loss": losses.mean().item(), "reward_margin": margin.item()})
        return found

    monkeypatch.setattr(WatchedKTOTrainer, "_compute_loss", spied)
    base = model_folder(tmp_path / "llama", "llama")
    dataset(tmp_path, pairs(9), "preference")
    settings = {"epochs": 2, "global_batch": 4, "learning_rate": 0.01}
    run_stage(tmp_path, stage_of("kto", {"name": str(base), "lora": {"rank": 4}}, settings, loss=loss, exchange=4))
    told = trace(tmp_path)
    assert [step["rows"] for step in by_hand] == [4, 4, 4, 4, 2] * 2
    assert [len(line["rows"]) for line in told] == [4, 4, 4, 4, 2] * 2
    for line, step in zip(told, by_hand, strict=True):
        assert line["loss"] == pytest.approx(step["loss"], abs=1e-5)
        assert ("reward_margin" in line) == math.isfinite(step["reward_margin"])
        assert line.get("reward_margin", 0) == pytest.approx(
            step["reward_margin"] if math.isfinite(step["reward_margin"]) else 0, abs=1e-5
        )


def test_a_reference_point_needs_the_micro_batch_that_it_says() -> None:
    [problem] = stage_of("kto", "x", {"global_batch": 8}, exchange=8).check()
    assert "the workers take 4 at once; set it to 4" in str(problem)
    scale = {"workers": 2, "micro_batch": 4}
    assert stage_of("kto", "x", {"global_batch": 8}, exchange=8, scale=scale).check() == []
    [problem] = stage_of("kto", "x", {"global_batch": 8}, exchange=8, scale={**scale, "min_workers": 1}).check()
    assert "fewer answers would share a reference point" in str(problem)


def test_it_stands_on_an_adapter_as_its_reference(tmp_path: Path) -> None:
    base = str(model_folder(tmp_path / "llama", "llama"))
    dataset(tmp_path, [original(f"t{i}", "train", {"text": f"yes please {i}"}) for i in range(4)], "text")
    run_stage(
        tmp_path, stage_of("sft", {"name": base, "lora": {}}, {"steps": 2, "global_batch": 4, "learning_rate": 0.05})
    )
    below = Store.at(tmp_path).sub("train").fetch("model")
    for name, method in (("lora", {"lora": {"rank": 2}}), ("full", {})):
        dataset(tmp_path / name, pairs(4), "preference")
        stage = stage_of("dpo", {"name": str(below), **method}, {"steps": 2, "global_batch": 4})
        run_stage(tmp_path / name, stage)
        assert trace(tmp_path / name)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_what_dpo_cannot_do_is_refused(tmp_path: Path) -> None:
    [problem] = stage_of("dpo", {"name": "x", "lora": {"init": "pissa"}}, {}).check()
    assert "use init: zero" in str(problem)
    dataset(tmp_path, questions(4))
    with pytest.raises(StageError, match="dpo needs preference rows"):
        run_stage(tmp_path, stage_of("dpo", str(model_folder(tmp_path / "llama", "llama")), {}))
    dataset(tmp_path / "t5", pairs(4), "preference")
    with pytest.raises(StageError, match="an encoder-decoder learns completions"):
        run_stage(tmp_path / "t5", stage_of("dpo", str(model_folder(tmp_path / "m", "t5")), {}))
