"""Held-out rows while training goes on: when it stops, what it keeps; and which tokens of a row are learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tilth.data.loading import load_pretrained, load_tokenizer, load_trained
from tilth.data.schema import original
from tilth.errors import StageError
from tilth.models import resolve
from tilth.storage import Store
from tilth.train.chat import assistant_turns
from tilth.train.config import Validation
from tilth.train.masking import IGNORED
from tilth.train.validating import standing
from training import SMOLLM, dataset, run_stage, stage_of, tiny_llama, trace

CHAT = [
    {"role": "user", "content": "What grows here?"},
    {"role": "assistant", "content": "Barley."},
    {"role": "user", "content": "And there?"},
    {"role": "assistant", "content": "Rye and oats."},
]


def texts(count: int, split: str, word: str) -> list[dict[str, Any]]:
    return [original(f"{split[0]}{i}", split, {"text": f"{word} {i} {word} {i}"}) for i in range(count)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("model")))


def trained(root: Path, model: str, **fields: Any) -> Any:
    """Twelve steps at a rate so high that the held-out loss soon rises."""
    dataset(root, [*texts(16, "train", "seed"), *texts(6, "validation", "harvest")], "text")
    settings = {"steps": 12, "learning_rate": 0.03, "scheduler": "constant"}
    return run_stage(root, stage_of("sft", model, settings, **fields))


def test_the_best_is_the_first_of_those_that_no_later_one_beats_by_enough() -> None:
    losses = [(5, 3.0), (10, 2.0), (15, 1.95), (20, 2.5)]
    assert (standing(losses).step, standing(losses).waited) == (15, 1)
    assert (standing(losses, 0.1).step, standing(losses, 0.1).waited) == (10, 2)


@pytest.mark.long
def test_the_best_weights_are_left_with_the_loss_that_they_have(tmp_path: Path, llama: str) -> None:
    made = trained(tmp_path, llama, validation={"every_steps": 1})
    losses = {line["step"]: line["validation_loss"] for line in trace(tmp_path)}
    best = min(losses, key=lambda step: losses[step])
    assert list(losses) == list(range(1, 13))
    assert 1 <= best < 12  # else this test says nothing
    assert (made.metrics["best_step"], made.metrics["validation_loss"]) == (best, losses[best])
    assert made.metrics["last_validation_loss"] == losses[12] > losses[best]
    folder = Store.at(tmp_path).sub("train").fetch("model")
    loaded = load_trained(folder, device="cpu")
    rows = [row["text"] + loaded.tokenizer.eos_token for row in texts(6, "validation", "harvest")]
    batch = loaded.tokenizer(rows, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    with torch.inference_mode():
        assert loaded.model(**batch, labels=labels).loss.item() == pytest.approx(losses[best], abs=1e-3)
    assert not (tmp_path / "train" / "best").exists()


def test_training_ends_when_patience_is_over(tmp_path: Path, llama: str) -> None:
    validation = {"every_steps": 1, "patience": 2, "min_delta": 100.0}
    made = trained(tmp_path, llama, validation=validation, checkpointing={"every_steps": 1})
    assert (made.metrics["steps"], made.metrics["best_step"]) == (3, 1)


def test_what_a_validation_needs_is_said() -> None:
    assert Validation.model_validate("dev") == Validation(split="dev")
    [problem] = Validation(patience=2).check()
    assert problem.mend == "set every_steps"


def test_noise_on_embeddings_changes_training_and_not_validation(tmp_path: Path, llama: str) -> None:
    losses = []
    for alpha in (None, 5.0):
        root = tmp_path / str(alpha)
        dataset(root, [*texts(16, "train", "seed"), *texts(6, "validation", "harvest")], "text")
        settings = {"steps": 1, "learning_rate": 1e-12, "neftune": alpha}
        made = run_stage(root, stage_of("sft", llama, settings, validation="validation"))
        losses.append((made.metrics["train_loss"], made.metrics["validation_loss"]))
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] == pytest.approx(losses[1][1], abs=1e-6)


def test_every_turn_of_the_assistant_is_learnt_and_nothing_else() -> None:
    tokenizer = load_tokenizer(resolve(SMOLLM))
    found = assistant_turns(tokenizer, CHAT)
    assert found["input_ids"] == tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    spans: list[list[int]] = [[]]
    for label in found["labels"]:
        if label != IGNORED:
            spans[-1].append(label)
        elif spans[-1]:
            spans.append([])
    said = [tokenizer.decode(span) for span in spans if span]
    assert said == ["Barley.<|im_end|>\n", "Rye and oats.<|im_end|>\n"]


def test_a_template_that_renders_beginnings_differently_is_refused() -> None:
    tokenizer = load_tokenizer(resolve(SMOLLM))
    tokenizer.chat_template = (
        "{{ messages | length }} {% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    )
    with pytest.raises(StageError, match="cannot be told apart; use loss_on: completion"):
        assistant_turns(tokenizer, CHAT)


@pytest.mark.parametrize("loss_on", ["completion", "assistant", "all"])
def test_the_loss_is_that_of_the_tokens_that_are_learnt(tmp_path: Path, llama: str, loss_on: str) -> None:
    dataset(tmp_path, [original("c", "train", {"messages": CHAT})], "chat")
    settings = {"steps": 1, "global_batch": 1, "learning_rate": 1e-12}
    stage = stage_of("sft", llama, settings, max_length=128, loss_on=loss_on, scale={"workers": 0, "micro_batch": 1})
    made = run_stage(tmp_path, stage)
    tokenizer = load_tokenizer(Path(llama))
    ids = tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    turns = assistant_turns(tokenizer, CHAT)["labels"]
    first_answer_ends = len(tokenizer.apply_chat_template(CHAT[:3], return_dict=True)["input_ids"])
    labels = {
        "all": ids,
        "assistant": turns,
        "completion": [IGNORED] * first_answer_ends + turns[first_answer_ends:],
    }[loss_on]
    with torch.no_grad():
        model = load_pretrained(Path(llama), "language_model").model
        expected = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
    assert made.metrics["train_loss"] == pytest.approx(expected, abs=1e-4)


def test_held_out_prompts_are_answered_as_generate_does(tmp_path: Path, llama: str) -> None:
    rows = [
        original(f"{split}{n}", split, {"prompt": f"seed {n} ", "completion": f"grain {n}"})
        for split, count in (("train", 8), ("validation", 3))
        for n in range(count)
    ]
    dataset(tmp_path, rows, "completion")
    validation = {"every_steps": 1, "keep": "last", "answers": {"rows": 2, "max_new_tokens": 5}}
    made = run_stage(tmp_path, stage_of("sft", llama, {"steps": 2}, validation=validation))
    asked = [line["answers"] for line in trace(tmp_path)]
    assert len(asked) == 2
    assert made.metrics["answers rouge_l"] == asked[-1]["rouge_l"]
    loaded = load_trained(Store.at(tmp_path).sub("train").fetch("model"), device="cpu")
    for n in range(2):
        batch = loaded.tokenizer(f"seed {n} ", return_tensors="pt")
        found = loaded.model.generate(**batch, max_new_tokens=5, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert asked[-1]["shown"][f"validation{n}"] == loaded.tokenizer.decode(found, skip_special_tokens=True)


def test_rows_without_answers_are_not_asked_for_any(tmp_path: Path, llama: str) -> None:
    with pytest.raises(StageError, match="hold no prompt with an answer"):
        trained(tmp_path, llama, validation={"answers": {}})
