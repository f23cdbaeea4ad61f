"""Supervised fine-tuning and masked language modelling on real models."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tilth.data.loading import load_trained
from tilth.data.schema import original
from tilth.errors import StageError
from tilth.models import resolve
from tilth.recipe import Stage, load
from tilth.storage import Store
from tilth.train.config import ModelConfig, Scale
from tilth.train.masking import IGNORED, Vocabulary, mask_words
from tilth.train.peft import Lora
from training import MINILM, SMOLLM, dataset, questions, run_stage, stage_of, trace, without_dropout

ADAPTER = {"name": MINILM, "lora": {"rank": 4}}


def model_in(root: Path) -> Path:
    return Store.at(root).sub("train").fetch("model")


# the configuration


def test_an_adapter_may_be_written_by_its_kind() -> None:
    short = ModelConfig.model_validate({"name": "x", "lora": {"rank": 4}})
    assert short == ModelConfig(name="x", peft=Lora(rank=4))
    assert short.model_dump()["peft"] == Lora(rank=4).model_dump()
    assert ModelConfig.model_validate("x") == ModelConfig(name="x")
    assert ModelConfig.model_validate({"name": "x", "lora": None}).peft == Lora()
    both = {"name": "x", "peft": {"kind": "lora", "rank": 4, "alpha": 2}, "lora": {"rank": 16}}
    assert ModelConfig.model_validate(both).peft == Lora(rank=16, alpha=2)


@pytest.mark.parametrize(
    ("batch", "scale", "divided"),
    [
        (64, {"workers": 4, "micro_batch": 4}, (4, 4, 4)),
        (30, {"workers": 2}, (2, 5, 3)),
        (32, {"workers": 0}, (1, 8, 4)),
        (7, {"workers": 7}, (7, 1, 1)),
    ],
)
def test_the_global_batch_is_divided(batch: int, scale: dict[str, int], divided: tuple[int, int, int]) -> None:
    found = Scale(**scale).batches(batch)
    assert found is not None
    assert (found.workers, found.micro, found.accumulation) == divided


def test_an_indivisible_batch_is_refused_with_the_nearest_that_fit() -> None:
    stage = stage_of("sft", MINILM, {"global_batch": 64}, scale={"workers": 3, "micro_batch": 4})
    [problem] = stage.check()
    assert str(problem).endswith("global batch 64 is not divisible by 3 workers x micro batch 4; use 60 or 72")
    assert all(Scale(workers=3, micro_batch=4).batches(size) for size in (60, 72))
    too_small = Scale(workers=4).batch_problem(2)
    assert too_small is not None
    assert too_small.mend == "use 4"


def test_an_override_reaches_the_adapter() -> None:
    source = {"kind": "inline", "rows": [{"text": "a", "label": "b"}]}
    recipe = {
        "name": "r",
        "stages": {
            "data": {"kind": "data", "source": source, "row": "labelled"},
            "sft": {"kind": "sft", "data": "@data", "model": {"name": MINILM}},
        },
    }
    loaded: Any = load(recipe, ["stages.sft.model.lora.rank=16"]).stages["sft"]
    assert loaded.model.peft == Lora(rank=16)


# before anything starts


@pytest.mark.parametrize(
    ("rows", "fields", "says"),
    [
        (questions(8, "test"), {}, "split 'train' of @data is empty; there are: test 8"),
        ([{**row, "label": None} for row in questions(8)], {}, "row t000 has no label"),
        (questions(1), {}, "two labels or more"),
        (questions(8), {"max_length": 4096}, "max_length 4096 is beyond the 512 tokens"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    tmp_path: Path, rows: list[dict[str, Any]], fields: dict[str, Any], says: str
) -> None:
    dataset(tmp_path, rows)
    with pytest.raises(StageError, match=says):
        run_stage(tmp_path, stage_of("sft", MINILM, {}, **fields))


# classification


def test_a_classifier_learns_and_loads_again(tmp_path: Path) -> None:
    dataset(tmp_path, [*questions(30), *questions(9, "validation")])
    made = run_stage(tmp_path, stage_of("sft", MINILM, {"epochs": 3, "learning_rate": 3e-4}, validation="validation"))
    losses = [line["loss"] for line in trace(tmp_path)]
    assert losses[-1] < losses[0] / 2
    assert made.metrics["validation_loss"] < losses[0]
    assert made.counts == {"rows": 30, "rows_seen": 30}
    assert made.detail["objective"] == "classification"
    assert made.detail["labels"] == ["card", "exchange rate", "transfer"]
    loaded = load_trained(model_in(tmp_path))
    rows = questions(9, "validation")
    batch = loaded.tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    said = loaded.model(**batch).logits.argmax(dim=-1).tolist()
    assert [loaded.labels[index] for index in said] == [row["label"] for row in rows]
    assert loaded.model.config.id2label == dict(enumerate(loaded.labels))


@pytest.mark.long
def test_the_loss_does_not_depend_on_how_the_batch_is_divided(tmp_path: Path) -> None:
    model = str(without_dropout(tmp_path / "model"))
    losses = []
    for micro in (1, 2, 8):
        root = tmp_path / str(micro)
        dataset(root, questions(13))
        run_stage(root, stage_of("sft", model, {"epochs": 2}, scale={"workers": 0, "micro_batch": micro}))
        losses.append([line["loss"] for line in trace(root)])
    assert losses[0] == pytest.approx(losses[2], abs=1e-4)
    assert losses[1] == pytest.approx(losses[2], abs=1e-4)


@pytest.mark.slow
def test_two_workers_train_as_one_and_see_every_row_once(tmp_path: Path, ray_session: Any) -> None:
    model = str(without_dropout(tmp_path / "model"))
    traces = []
    for workers in (0, 2):
        root = tmp_path / str(workers)
        dataset(root, questions(21))
        scale = {"workers": workers, "cpus": 0.5, "micro_batch": 4}
        run_stage(root, stage_of("sft", model, {"epochs": 2}, scale=scale))
        traces.append(trace(root))
    alone, together = traces
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], abs=1e-4)
    assert [sorted(line["rows"]) for line in together] == [sorted(line["rows"]) for line in alone]
    for epoch in range(2):
        seen = [row for line in together[epoch * 3 : epoch * 3 + 3] for row in line["rows"]]
        assert sorted(seen) == sorted(row["id"] for row in questions(21))


def test_an_adapter_with_its_head_gives_the_same_logits_in_plain_peft(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    dataset(tmp_path, questions(24))
    made = run_stage(tmp_path, stage_of("sft", ADAPTER, {"epochs": 2}))
    assert made.detail["peft"] == "lora"
    assert made.detail["parameters"]["trainable"] < made.detail["parameters"]["total"] / 20
    loaded = load_trained(model_in(tmp_path), device="cpu")
    base = AutoModelForSequenceClassification.from_pretrained(resolve(MINILM), num_labels=3)
    plain = PeftModel.from_pretrained(base, model_in(tmp_path)).eval()
    batch = loaded.tokenizer("where is card number 3?", return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(**batch).logits, plain(**batch).logits)


def test_an_adapter_is_stood_on_with_a_head_of_other_labels(tmp_path: Path) -> None:
    below, base = tmp_path / "below", {"lora": {"rank": 2}}
    dataset(below, questions(12))
    run_stage(below, stage_of("sft", {"name": MINILM, **base}, {"steps": 1, "global_batch": 4}))
    more = [{**row, "label": f"{row['label']} {index % 2}"} for index, row in enumerate(questions(12))]
    dataset(tmp_path, more)
    run_stage(tmp_path, stage_of("sft", {"name": str(model_in(below)), **base}, {"steps": 1, "global_batch": 4}))
    assert load_trained(model_in(tmp_path), device="cpu").labels == tuple(sorted({row["label"] for row in more}))


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "node"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    dataset(tmp_path, questions(24))
    stage = stage_of("sft", MINILM, {"epochs": 4, "learning_rate": 1e30, "max_grad_norm": 0})
    with pytest.raises(StageError, match=r"(nan|inf).* at step \d+, on rows t\d\d\d, .*lower optimisation"):
        run_stage(tmp_path, stage)
    assert not (tmp_path / "train" / "result.json").exists()
    assert not list(own.glob("tilth-*")), "what was prepared on the node's own disk is left behind"


@pytest.mark.parametrize("every", [1, None])
def test_a_held_out_loss_that_is_no_number_stops_the_run_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int | None
) -> None:
    monkeypatch.setattr("tilth.train.validating.measurements", lambda state: [(state.global_step, float("nan"))])
    held_out = [{**row, "split": "validation"} if number % 4 == 0 else row for number, row in enumerate(questions(24))]
    dataset(tmp_path, held_out)
    stage = stage_of("sft", MINILM, {"steps": 2}, validation={"split": "validation", "every_steps": every})
    with pytest.raises(StageError, match=r"train: the loss on held-out rows is nan after step \d, .*learning_rate"):
        run_stage(tmp_path, stage)
    assert not (tmp_path / "train" / "result.json").exists()


# language models


def completions(count: int) -> list[dict[str, Any]]:
    return [
        original(f"c{i}", "train", {"prompt": f"The colour of thing {i} is", "completion": f" green, as thing {i} is."})
        for i in range(count)
    ]


def test_a_language_model_learns_completions_and_can_be_trained_further(tmp_path: Path) -> None:
    dataset(tmp_path, completions(8), "completion")
    stage = stage_of("sft", {"name": SMOLLM, "lora": {"rank": 4}}, {"steps": 3, "global_batch": 4})
    made = run_stage(tmp_path, stage)
    losses = [line["loss"] for line in trace(tmp_path)]
    assert losses[-1] < losses[0]
    assert made.detail["objective"] == "language_model"
    assert load_trained(model_in(tmp_path)).max_length == 32


# masked language models


def test_whole_words_are_masked_or_none() -> None:
    import random

    words = [-1, 0, 0, 1, 2, 2, 2, 3, 4, 5, -1]
    ids = list(range(100, 111))
    for seed in range(50):
        masked, labels = mask_words(ids, words, 0.3, random.Random(seed), Vocabulary(7, tuple(range(10))))
        asked = {word for word, label in zip(words, labels, strict=True) if label != IGNORED}
        assert len(asked) == 2
        assert -1 not in asked
        for here, word, label, before in zip(masked, words, labels, ids, strict=True):
            assert label == (before if word in asked else IGNORED)
            assert word in asked or here == before


def test_masking_follows_the_published_shares() -> None:
    import random

    words = list(range(20_000))
    ids = [50] * len(words)
    masked, labels = mask_words(ids, words, 0.15, random.Random(0), Vocabulary(7, (8,)))
    asked = [here for here, label in zip(masked, labels, strict=True) if label != IGNORED]
    assert len(asked) == 3000
    assert asked.count(7) / 3000 == pytest.approx(0.8, abs=0.03)
    assert asked.count(8) / 3000 == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("model", [pytest.param(MINILM, marks=pytest.mark.slow), ADAPTER], ids=["whole", "lora"])
@pytest.mark.long
def test_an_encoder_adapts_to_labelled_texts(tmp_path: Path, model: Any) -> None:
    dataset(tmp_path, questions(24))
    stage: Stage = stage_of("mlm", model, {"epochs": 4, "learning_rate": 2e-3}, label_conditional=True)
    run_stage(tmp_path, stage)
    losses = [line["loss"] for line in trace(tmp_path)]
    assert sum(losses[-3:]) < sum(losses[:3])
    loaded = load_trained(model_in(tmp_path))
    assert (loaded.objective, loaded.conditioned) == ("masked_lm", True)
