"""What `tilth plan` says before anything is loaded: sizes of models, memory of stages, rows of a hub's dataset.

The reference is PyTorch, PEFT and DeepSpeed's paper: what is there once a model is really loaded and trained.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tilth
from fake_hub import Hub, serving
from tilth.planning import plan
from tilth.train.config import ModelConfig, Optimisation, Scale
from tilth.train.memory import Footprint, training_bytes
from tilth.weights import Weights, in_folder, weights

BERT = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96, "vocab_size": 211,
}  # fmt: skip


def bert(folder: Path, dtype: str = "float32", most: str = "60KB") -> Any:
    """A small encoder, saved, and the module itself."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(**BERT)).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=most)
    return model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    bert(folder)
    return folder


def count(module: Any, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


# sizes of models


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_the_parameters_of_a_model_in_several_files(tmp_path, dtype, width):
    model = bert(tmp_path, dtype)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = weights(str(tmp_path))
    assert (found.parameters, found.stored) == (count(model), width * count(model))


@pytest.mark.parametrize("most", ["60KB", "1GB"])
def test_weights_for_another_program_beside_those_of_the_model_count_nothing(tmp_path, most):
    model = bert(tmp_path, most=most)
    shard = next(tmp_path.glob("*.safetensors"))
    (tmp_path / "consolidated.safetensors").write_bytes(shard.read_bytes())
    assert in_folder(tmp_path).parameters == count(model)


def test_an_adapter_weighs_what_it_stands_on_and_itself(tmp_path, encoder):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForMaskedLM

    model = get_peft_model(AutoModelForMaskedLM.from_pretrained(encoder), LoraConfig(target_modules=["query"]))
    model.save_pretrained(tmp_path)
    assert in_folder(tmp_path).parameters == count(model)


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b'\x09\0\0\0\0\0\0\0{"a": 1}'])
def test_a_damaged_header_tells_nothing(tmp_path, data):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(data)
    assert weights(str(tmp_path)) is None


# training


def trained_bytes(model: Any) -> int:
    """Weights, gradients and AdamW's state of a model after one step."""
    import torch

    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(chosen, foreach=False)
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    held = [*model.parameters(), *(p.grad for p in chosen)]
    held += [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_all_weights_takes_what_torch_takes(tmp_path, dtype):
    model = bert(tmp_path, dtype)
    config = ModelConfig(name="x", dtype=dtype)
    found = training_bytes(in_folder(tmp_path), config, Optimisation(), Scale())
    assert found == pytest.approx(trained_bytes(model), rel=0.01)


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(query|value)", r".*dense"])
def test_lora_adds_what_peft_adds(encoder, targets):
    import peft
    from transformers import AutoModelForMaskedLM

    config = ModelConfig.model_validate({"name": "x", "lora": {"rank": 3, "targets": targets}})
    built = peft.get_peft_model(AutoModelForMaskedLM.from_pretrained(encoder), config.peft.build("masked_lm"))
    assert config.peft.parameters(in_folder(encoder).shapes) == count(built, trainable=True)
    found = training_bytes(in_folder(encoder), config, Optimisation(), Scale())
    assert found == pytest.approx(trained_bytes(built), rel=0.01)


@pytest.mark.parametrize(("stage", "each"), [(1, 2 + 2 + 12 / 4), (2, 2 + (2 + 12) / 4), (3, (2 + 2 + 12) / 4)])
def test_zero_divides_what_its_paper_says(stage, each):
    scale = Scale.model_validate({"workers": 4, "deepspeed": {"stage": stage}})
    found = training_bytes(Weights(1000, 4000), ModelConfig(name="x"), Optimisation(precision="bfloat16"), scale)
    assert found == 4 * 1000 * each


# plans


def recipe(encoder: Path, **more: Any) -> dict[str, Any]:
    proposer = {"kind": "masked_lm", "precision": "float32", "model": "@mlm"}
    return {
        "name": "x",
        "stages": {
            "data": {"kind": "data", "row": "text", "source": {"kind": "inline", "rows": [{"text": "a card"}]}},
            "mlm": {"kind": "mlm", "data": "@data", "model": str(encoder), **more},
            "augment": {
                "kind": "augment", "data": "@data", "resources": {"workers": 3},
                "steps": [{"kind": "contextual", "proposer": proposer}],
            },
        },
    }  # fmt: skip


def test_a_plan_says_the_memory_of_each_stage_that_holds_models(encoder):
    data, mlm, augment = (row["estimate"] for row in plan(tilth.load(recipe(encoder)), None))
    size = in_folder(encoder).parameters * 4
    assert "gib" not in data
    assert mlm["gib"] == pytest.approx(4 * size / 2**30)
    assert augment["gib"] == pytest.approx(3 * size / 2**30)


def test_workers_that_only_the_cluster_knows_are_not_guessed(encoder, monkeypatch):
    changed = tilth.load(recipe(encoder), ["stages.augment.resources.workers=auto"])
    assert plan(changed, None)[2]["estimate"]["gib"] == pytest.approx(
        (os.cpu_count() or 1) * in_folder(encoder).parameters * 4 / 2**30
    )
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert "gib" not in plan(changed, None)[2]["estimate"]


def test_a_plan_loads_neither_torch_nor_ray(encoder, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe(encoder)))
    code = (
        "import sys; from tilth.cli import main; assert main(['plan', sys.argv[1], '--json']) == 0; "
        "assert not {'torch', 'ray', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "recipe.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1]["estimate"]["gib"] > 0


def inline(row: str, **rows: int) -> dict[str, Any]:
    """A data stage of so many rows of each split."""
    one = {"prompt": "p", "completion": "c"} if row == "completion" else {"prompt": "p", "chosen": "c", "rejected": "r"}
    return {"kind": "data", "row": row, "sources": {k: {"kind": "inline", "rows": [one] * n} for k, n in rows.items()}}


def test_a_plan_counts_the_data_of_a_stage_and_not_what_its_model_was_trained_on(encoder):
    stages = {
        "big": inline("completion", train=300, test=100),
        "prefs": inline("preference", train=8),
        "bench": inline("completion", test=5),
        "sft": {"kind": "sft", "data": "@big", "model": str(encoder)},
        "dpo": {"kind": "dpo", "data": "@prefs", "model": "@sft", "max_length": 32},
        "score": {"kind": "evaluate", "data": "@bench", "models": {"m": "@sft"}},
    }
    found = {row["stage"]: row["estimate"] for row in plan(tilth.load({"name": "x", "stages": stages}), None)}
    assert found["sft"]["rows"] == 300
    assert (found["dpo"]["rows"], found["dpo"]["tokens"]) == (8, 8 * 32)
    assert found["score"]["rows"] == 5


def several(encoder: Path, seeds: int, bench: int, *overrides: str) -> tilth.Recipe:
    """Stages of several kinds on two datasets."""
    stages = {
        "seeds": inline("completion", train=seeds, test=seeds),
        "bench": inline("completion", test=bench),
        "made": {"kind": "generate", "data": "@seeds", "method": {"kind": "self_instruct"}, "target": 60,
                 "generator": {"kind": "echo"}},
        "tuned": {"kind": "sft", "data": "@seeds", "model": str(encoder)},
        "score": {"kind": "evaluate", "data": "@bench", "models": {"m": "@tuned"}},
        "mixed": {"kind": "mix", "data": {"a": "@seeds", "b": "@bench"}},
    }  # fmt: skip
    return tilth.load({"name": "x", "stages": stages}, overrides)


def test_a_plan_compares_the_work_of_a_stage_with_what_it_did_before(encoder, tmp_path):
    counts = {
        "seeds": {"inputs": 20, "accepted": 20, "splits": {"train": 10, "test": 10}},
        "bench": {"inputs": 5, "accepted": 5, "splits": {"test": 5}},
        "made": {"inputs": 900, "accepted": 60, "carried": 20, "splits": {"train": 70, "test": 10}},
        "tuned": {"rows": 10, "rows_seen": 9},
        "score": {"rows": 5, "models": 1},
        "mixed": {"inputs": 25, "accepted": 25, "splits": {"train": 10, "test": 15}},
    }
    for step in tilth.Run(tmp_path).plan(several(encoder, 10, 5)):
        replace(step.out.artifact(counts=counts[step.name]), seconds=10.0, created="2026").save()

    def planned(*given: Any) -> dict[str, dict[str, float]]:
        return {row["stage"]: row["estimate"] for row in plan(several(encoder, *given), tmp_path)}

    done = planned(10, 5)
    assert {name: row["rows"] for name, row in done.items()} == {
        "seeds": 20, "bench": 5, "made": 60, "tuned": 10, "score": 5, "mixed": 25,
    }  # fmt: skip
    assert {row["seconds"] for row in done.values()} == {0.0}
    more = planned(20, 15)
    assert {name: more[name]["seconds"] for name in ("made", "tuned", "score", "mixed")} == {
        "made": 10.0, "tuned": 20.0, "score": 30.0, "mixed": 10.0 * 55 / 25,
    }  # fmt: skip
    assert planned(10, 5, "stages.made.target=180")["made"]["seconds"] == 30.0
    assert planned(20, 5, "stages.tuned.optimisation.steps=7")["tuned"]["seconds"] == 10.0


# the hub, by what it says alone


def elsewhere(expressions: list[str], cache: Path, endpoint: str) -> list[str]:
    """What each expression gives in a process of its own, with caches of its own."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    known |= {"TILTH_CACHE": str(cache / "tilth"), "HF_HOME": str(cache / "hf"), "HF_ENDPOINT": endpoint}
    code = "from tilth.data.source import HuggingFace as H; from tilth.weights import weights\n"
    code += "\n".join(f"print({expression})" for expression in expressions)
    done = subprocess.run([sys.executable, "-c", code], env=known, text=True, capture_output=True, check=True)
    return done.stdout.splitlines()


def test_a_model_and_rows_of_the_hub_are_counted_without_a_download(tmp_path):
    Hub.files, Hub.parameters = {"model.safetensors": b"", "config.json": b"{}"}, {"BF16": 1000, "F32": 10}
    whole = {"splits": [{"name": "train", "num_examples": 7}, {"name": "test", "num_examples": 2}]}
    small = {"config_name": "default", "splits": [{"name": "train", "num_examples": 3}]}
    large = {"config_name": "large", "splits": [{"name": "train", "num_examples": 30}]}
    Hub.cards = {"one": {"dataset_info": whole}, "two": {"dataset_info": [small, large]}, "none": {}}
    expected = {
        "weights('org/tiny').parameters, weights('org/tiny').stored": "1010 2040",
        "H(path='org/one').count()": "7",
        "H(path='org/one', subset='test').count()": "2",
        "H(path='org/one', subset='extra').count()": "None",
        "H(path='org/two').count()": "3",
        "H(path='org/two', name='large').count()": "30",
        "H(path='org/two', name='huge').count()": "None",
        "H(path='org/none').count()": "None",
        "H(path='org/nowhere').count()": "None",
    }
    with serving() as endpoint:
        assert elsewhere(list(expected), tmp_path, endpoint) == list(expected.values())
        assert not [path for path in Hub.asked if "resolve" in path or "tree" in path]


def test_a_hub_out_of_reach_leaves_both_unknown(tmp_path):
    asked = ["weights('org/tiny')", "H(path='org/one').count()"]
    assert elsewhere(asked, tmp_path, "http://127.0.0.1:9") == ["None", "None"]


@pytest.mark.parametrize(
    ("trained", "shown"), [(1000, "(100 %)"), (996, "(100 %)"), (123, "(12 %)"), (12, "(1.2 %)"), (1, "(0.1 %)")]
)
def test_the_share_that_is_trained_is_written_out(trained: int, shown: str) -> None:
    assert shown in str(Footprint(trained, 1000, 0, 0, 0))
