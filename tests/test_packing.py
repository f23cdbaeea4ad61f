"""Packed rows: every row in one pack, and learnt from as if it were alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tilth.data.schema import original
from tilth.errors import StageError
from tilth.train.independence import demand_independence, leak
from tilth.train.masking import IGNORED
from tilth.train.packing import CollatePacks, pack
from tilth.train.watch import ROWS, TOKENS
from training import dataset, die, run_stage, stage_of, tiny_llama, trace

SMALL = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = transformers.LlamaConfig(**SMALL, intermediate_size=64, max_position_embeddings=64)


def encoded(count: int, longest: int = 20) -> datasets.Dataset:
    """Rows r0, r1, … of random tokens; the first half of each asks nothing."""
    rng = random.Random(1)
    rows = []
    for number in range(count):
        ids = [rng.randrange(1, 128) for _ in range(rng.randint(2, longest))]
        half = len(ids) // 2
        rows.append({"id": f"r{number}", "input_ids": ids, "labels": [IGNORED] * half + ids[half:]})
    return datasets.Dataset.from_list(rows)


def completions(count: int) -> list[dict[str, Any]]:
    """Rows of different lengths, c00, c01, …"""
    fields = [
        {"prompt": f"The colour of thing {i} is", "completion": " green" + ", very" * (i % 7) + "."}
        for i in range(count)
    ]
    return [original(f"c{i:02}", "train", row) for i, row in enumerate(fields)]


def test_every_row_is_whole_in_one_pack_and_few_places_are_empty() -> None:
    rows = encoded(200)
    packs = pack(rows, 24, "whole")
    by_id = {row["id"]: row for row in rows}
    assert sorted(name for found in packs for name in found["ids"]) == sorted(by_id)
    for found in packs:
        assert len(found["input_ids"]) <= 24
        for column in ("input_ids", "labels"):
            assert found[column] == [token for name in found["ids"] for token in by_id[name][column]]
        assert found["seq_lengths"] == [len(by_id[name]["input_ids"]) for name in found["ids"]]
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert tokens / (24 * len(packs)) > 0.95


def test_the_loss_of_packs_is_that_of_their_rows_alone() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LLAMA).eval()
    rows = encoded(12)
    packs = list(pack(rows, 40, "loss"))
    batch = CollatePacks(pad_token_id=0)(packs)
    assert sorted(name for names in batch.pop(ROWS) for name in names) == sorted(rows["id"])
    assert sum(batch.pop(TOKENS)) == sum(len(row["input_ids"]) for row in rows)

    def losses(logits: torch.Tensor, labels: torch.Tensor) -> float:
        flat = logits[:, :-1].flatten(end_dim=1), labels[:, 1:].flatten()
        return torch.nn.functional.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum").item()

    with torch.no_grad():
        # with a cache a model does not look at positions; TRL's trainer does without one
        found = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        together = losses(found.logits, batch["labels"])
        alone = sum(
            losses(model(torch.tensor([row["input_ids"]])).logits, torch.tensor([row["labels"]])) for row in rows
        )
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        transformers.Qwen3Config(**SMALL, intermediate_size=64, head_dim=8, num_key_value_heads=2),
        transformers.Gemma3TextConfig(**SMALL, intermediate_size=64, head_dim=8, sliding_window=4),
        transformers.GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4),
    ],
    ids=lambda config: str(config.model_type),
)
def test_families_that_keep_rows_apart(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    assert leak(model) < 1e-5
    demand_independence(model, "it")
    demand_independence(model.bfloat16(), "it, coarsely computed,")


@pytest.mark.parametrize(
    "config",
    [
        transformers.BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=4),
        transformers.OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
        transformers.MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2),
    ],
    ids=lambda config: str(config.model_type),
)
def test_families_that_do_not_are_refused(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for made in (model, model.bfloat16()):
        with pytest.raises(StageError, match="does not keep packed rows apart; set packing: null"):
            demand_independence(made, "it")


def test_an_adapter_of_virtual_tokens_is_refused() -> None:
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(AutoModelForCausalLM.from_config(LLAMA), config)
    with pytest.raises(StageError, match="adapter does not keep packed rows apart"):
        demand_independence(model, "it")


@pytest.mark.long
def test_packed_and_padded_training_start_from_the_same_loss_and_name_every_row(tmp_path: Path) -> None:
    model = str(tiny_llama(tmp_path / "model"))
    traces = {}
    for name, packing in (("padded", None), ("packed", {"length": 64})):
        dataset(tmp_path / name, completions(40), "completion")
        settings = {"global_batch": 40, "epochs": 2}
        made = run_stage(tmp_path / name, stage_of("sft", model, settings, packing=packing))
        assert made.counts == {"rows": 40, "rows_seen": 40}
        traces[name] = trace(tmp_path / name)
    for padded, packed in zip(traces["padded"], traces["packed"], strict=True):
        assert packed["loss"] == pytest.approx(padded["loss"], abs=1e-4)
        assert packed["grad_norm"] == pytest.approx(padded["grad_norm"], rel=1e-3)
        assert packed["tokens"] == padded["tokens"]
        assert sorted(packed["rows"]) == sorted(padded["rows"]) == [f"c{i:02}" for i in range(40)]


@pytest.mark.long
def test_a_validation_loss_is_that_of_rows_alone(tmp_path: Path) -> None:
    model = str(tiny_llama(tmp_path / "model"))
    rows = completions(24)
    held_out = [{**row, "id": f"v{row['id']}", "split": "validation"} for row in completions(9)]
    losses = []
    for packing in (None, {}):
        root = tmp_path / str(packing)
        dataset(root, [*rows, *held_out], "completion")
        # so small a rate that both leave the model that they began with
        settings = {"steps": 1, "learning_rate": 1e-12}
        made = run_stage(root, stage_of("sft", model, settings, packing=packing, validation="validation"))
        losses.append(made.metrics["validation_loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.slow
def test_a_killed_run_on_packs_is_run_again_to_the_same_trace(tmp_path: Path) -> None:
    model = str(tiny_llama(tmp_path / "model"))
    settings = {"global_batch": 4, "epochs": 12}
    stage = stage_of("sft", model, settings, packing={"length": 64}, checkpointing={"every_steps": 3})
    for name in ("whole", "killed"):
        dataset(tmp_path / name, completions(60), "completion")
    run_stage(tmp_path / "whole", stage)
    assert len(trace(tmp_path / "whole")) > 30
    die(tmp_path / "killed", stage, step=10)
    run_stage(tmp_path / "killed", stage)
    assert trace(tmp_path / "killed") == trace(tmp_path / "whole")


def test_what_cannot_be_packed_is_refused_before_anything_starts(tmp_path: Path) -> None:
    short = stage_of("sft", "x", {}, packing={"length": 8})
    assert [str(problem) for problem in short.check()] == [
        "packing.length: packs of 8 tokens cannot hold rows of 32; use 32 or more, or lower max_length"
    ]
    [problem] = stage_of("sft", "x", {}, packing={}, objective="classification").check()
    assert problem.mend == "set packing: null"
    assert stage_of("sft", "x", {}, packing={"length": 64}).check() == []
