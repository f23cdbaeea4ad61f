"""A trained model as others load it, and the card that says what it is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tilth.data.loading import load_trained
from tilth.data.schema import added, original
from tilth.models import resolve
from tilth.runs import Artifact, Out
from tilth.storage import Store
from tilth.train.export import Export
from training import SMOLLM, dataset, run_stage, stage_of, tiny_llama


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(ids).logits
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    """A LoRA on a tiny Llama, trained far enough that it answers otherwise than its base."""
    root = tmp_path_factory.mktemp("trained")
    model = tiny_llama(root / "base")
    rows = [original(f"t{i}", "train", {"text": f"seed number {i}"}) for i in range(6)]
    children = [added(row, "eda", 0, 1, "eda", text=row["text"] + " again") for row in rows[:2]]
    dataset(root, [*rows, *children], "text")
    settings = {"steps": 3, "learning_rate": 0.05}
    made = run_stage(root, stage_of("sft", {"name": str(model), "lora": {"rank": 4}}, settings))
    return root, made


def test_an_adapter_loads_in_plain_peft_with_its_card_beside_it(trained: tuple[Path, Artifact]) -> None:
    root, made = trained
    folder = root / "train" / "model"
    base = AutoModelForCausalLM.from_pretrained(root / "base")
    ids = torch.arange(5, 15)[None]
    before = logits(base, ids)
    plain = logits(PeftModel.from_pretrained(base, folder), ids)
    torch.testing.assert_close(logits(load_trained(folder, device="cpu").model, ids), plain)
    assert not torch.allclose(before, plain, atol=1e-3)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1]) == {"library_name": "peft", "tags": ["tilth"]}
    assert "| original | 6 |\n| eda | 2 |" in card
    assert f"| train_loss | {made.metrics['train_loss']:.6g} |" in card
    assert yaml.safe_load(card.split("```yaml")[1].split("```")[0])["model"]["peft"]["rank"] == 4


def exported(root: Path, made: Artifact, **fields: Any) -> Path:
    out = Out("export", "export", "model", "1" * 64, {}, Store.at(root).sub("export"))
    artifact = Export(model="@train", **fields).run(out, {"@train": made})
    assert artifact.detail["peft"] is None
    return out.store.fetch("model")


def test_a_merged_model_loads_in_plain_transformers_and_says_the_same(trained: tuple[Path, Artifact]) -> None:
    root, made = trained
    folder = exported(root, made)
    assert not list(folder.glob("adapter*"))
    assert list(folder.glob("*.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("seed number 3", return_tensors="pt")["input_ids"]
    adapted = load_trained(root / "train" / "model", device="cpu").model
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder), ids), logits(adapted, ids))
    assert "library_name: transformers" in (folder / "README.md").read_text(encoding="utf-8")


PLAIN_VLLM = """
import json, os, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
merged, base, adapter, prompt = sys.argv[1:]
settings = {"dtype": "float32", "max_model_len": 64, "max_num_seqs": 4, "kv_cache_memory_bytes": 2**28, "seed": 0}
greedy = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
found = []
for model, lora in ((merged, None), (base, LoRARequest("adapter", 1, adapter)), (base, None)):
    llm = LLM(model=model, enable_lora=lora is not None, max_lora_rank=8, **settings)
    (answer,) = llm.generate([prompt], greedy, lora_request=lora, use_tqdm=False)
    found.append(list(answer.outputs[0].token_ids))
    llm.llm_engine.engine_core.shutdown()
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_merged_model_and_an_adapter_load_in_plain_vllm_and_say_the_same(tmp_path: Path) -> None:
    rows = [original(f"t{i}", "train", {"text": f"The card number {i} was blocked on a Monday."}) for i in range(8)]
    dataset(tmp_path, rows, "text")
    how = {"steps": 6, "learning_rate": 2e-3}
    made = run_stage(tmp_path, stage_of("sft", {"name": SMOLLM, "lora": {"rank": 4}}, how))
    merged, adapter = exported(tmp_path, made), tmp_path / "train" / "model"
    prompt, base = "The card number 3", str(resolve(SMOLLM))
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_VLLM, str(merged), base, str(adapter), prompt],
        capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    whole, adapted, untrained = json.loads(done.stdout.splitlines()[-1])
    ids = AutoTokenizer.from_pretrained(merged)(prompt, return_tensors="pt")["input_ids"]
    ours = load_trained(adapter, device="cpu").model
    expected: list[int] = []
    for _ in range(12):  # the likeliest token, be it an end
        expected.append(
            int(logits(ours, torch.cat([ids, torch.tensor([expected], dtype=torch.long)], 1))[0, -1].argmax())
        )
    assert whole == adapted == expected
    assert untrained != expected


def test_a_merged_model_may_be_halved(trained: tuple[Path, Artifact]) -> None:
    folder = exported(*trained, dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
