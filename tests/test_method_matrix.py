"""Every method on every kind of model: trained, saved, and loaded again to the loss that it had in training.

The table in CONTRIBUTING.md is that of CELLS; a test holds the two equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from tilth.data.loading import Loaded, load_pretrained, load_trained
from tilth.data.schema import original
from tilth.errors import StageError
from tilth.storage import Store
from tiny import model_folder
from training import dataset, questions, run_stage, stage_of, trace

Row = dict[str, Any]

#: method: (as a recipe writes it, what the weights that it trains are called)
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "full": ({}, "."),
    "freeze": (
        {"freeze": {"blocks": [0, 2], "embeddings": True}},
        r"(layers?|h|block)\.2\.|[Nn]orm|head",
    ),
    "lora": ({"lora": {"rank": 4}}, "lora_[AB]"),
    "lora (rsLoRA, DoRA)": ({"lora": {"variant": "dora", "scaling": "rank_stabilized"}}, "lora_([AB]|magnitude)"),
    "lora (PiSSA)": ({"lora": {"init": "pissa", "rank": 4}}, "lora_[AB]"),
    "ia3": ({"ia3": {}}, "ia3_l"),
    "prefix_tuning": ({"prefix_tuning": {"length": 3, "projection": 8}}, "prompt_embeddings"),
    "prompt_tuning": ({"prompt_tuning": {"length": 3, "text": "answer this"}}, "prompt_embeddings"),
    "p_tuning": ({"p_tuning": {"length": 3, "units": 8}}, "prompt_embeddings"),
    "bottleneck (Houlsby)": ({"bottleneck": {"width": 4}}, "bottleneck_layers"),
    "bottleneck (Pfeiffer)": ({"bottleneck": {"placement": "pfeiffer", "width": 4}}, "bottleneck_layers"),
}
WORDS = ("Ann", "lives", "in", "Rome", "now")


def completions(split: str, count: int) -> list[Row]:
    return [
        original(f"{split}{i}", split, {"prompt": f"thing {i} is", "completion": f" green {i}"}) for i in range(count)
    ]


def tagged(split: str, count: int) -> list[Row]:
    tags = ["PER", "O", "O", "LOC", "O"]
    return [original(f"{split}{i}", split, {"tokens": list(WORDS), "tags": tags}) for i in range(count)]


def answered(split: str, count: int) -> list[Row]:
    where = [{"text": "Rome", "start": 13}]
    payload = {"question": "Where?", "context": " ".join(WORDS), "answers": where}
    return [original(f"{split}{i}", split, payload) for i in range(count)]


# the loss of one row, by plain PyTorch


def causal_loss(loaded: Loaded, row: Row) -> torch.Tensor:
    prompt = loaded.tokenizer(row["prompt"])["input_ids"]
    ids = [*loaded.tokenizer(row["prompt"] + row["completion"])["input_ids"], loaded.tokenizer.eos_token_id]
    logits = loaded.model(input_ids=torch.tensor([ids])).logits[0, -len(ids) :]
    return cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(ids[len(prompt) :]))


def class_loss(loaded: Loaded, row: Row) -> torch.Tensor:
    logits = loaded.model(**loaded.tokenizer(row["text"], return_tensors="pt")).logits
    return cross_entropy(logits, torch.tensor([loaded.labels.index(row["label"])]))


def tag_loss(loaded: Loaded, row: Row) -> torch.Tensor:
    logits = loaded.model(**loaded.tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")).logits[0]
    # <s>, then bytes: a word begins where the last one ended
    starts = [1 + sum(map(len, row["tokens"][:n])) for n in range(len(row["tokens"]))]
    text = logits[-1 - sum(map(len, row["tokens"])) :]
    return cross_entropy(text[starts], torch.tensor([loaded.labels.index(tag) for tag in row["tags"]]))


def span_loss(loaded: Loaded, row: Row) -> torch.Tensor:
    batch = loaded.tokenizer(row["question"], row["context"], return_tensors="pt")
    said, length = loaded.model(**batch), batch["input_ids"].shape[1]
    # <s>, the question's bytes, the context's bytes
    first = 1 + len(row["question"]) + row["answers"][0]["start"]
    ends = (said.start_logits[:, -length:], first), (said.end_logits[:, -length:], first + len("Rome") - 1)
    return sum(cross_entropy(logits, torch.tensor([at])) for logits, at in ends) / 2  # type: ignore[return-value]


def seq2seq_loss(loaded: Loaded, row: Row) -> torch.Tensor:
    labels = loaded.tokenizer(row["completion"], return_tensors="pt")["input_ids"]
    loss: torch.Tensor = loaded.model(**loaded.tokenizer(row["prompt"], return_tensors="pt"), labels=labels).loss
    return loss


def labelled(split: str, count: int) -> list[Row]:
    return questions(count, split)


def preferred(split: str, count: int) -> list[Row]:
    answers = {"chosen": " yes please", "rejected": " no"}
    return [original(f"{split}{i}", split, {"prompt": f"say {i}:", **answers}) for i in range(count)]


def pair_loss(loaded: Loaded, row: Row) -> torch.Tensor:
    texts = [f"{row['prompt']}{row[name]}</s>" for name in ("chosen", "rejected")]
    chosen, rejected = (loaded.model(**loaded.tokenizer(text, return_tensors="pt")).logits[0, 0] for text in texts)
    return -torch.nn.functional.logsigmoid(chosen - rejected)


#: kind of model: (stage, architecture, row type, rows, loss of a row)
MODELS: dict[str, tuple[str, str, str, Callable[[str, int], list[Row]], Callable[[Loaded, Row], torch.Tensor]]] = {
    "causal LM": ("sft", "llama", "completion", completions, causal_loss),
    "classification": ("sft", "bert", "labelled", labelled, class_loss),
    "token classification": ("sft", "bert", "tagged", tagged, tag_loss),
    "extractive QA": ("sft", "bert", "qa", answered, span_loss),
    "encoder-decoder": ("sft", "t5", "completion", completions, seq2seq_loss),
    "reward": ("reward", "llama", "preference", preferred, pair_loss),
}
#: cells that cannot be, and why
UNSUPPORTED: dict[tuple[str, str], str] = {}
CELLS = [(method, model) for method in METHODS for model in MODELS if (method, model) not in UNSUPPORTED]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {kind: model_folder(root / kind, kind) for kind in ("llama", "bert", "t5")}


def every_cell() -> list[Any]:
    """Those of a language model, and every kind of model with all weights and with LoRA; the others are slow."""
    quick = [model == "causal LM" or method in ("full", "lora") for method, model in CELLS]
    return [
        pytest.param(*cell, marks=() if fast else pytest.mark.slow) for cell, fast in zip(CELLS, quick, strict=True)
    ]


@pytest.mark.parametrize(("method", "model"), every_cell())
def test_a_cell_trains_saves_and_loads(tmp_path: Path, bases: dict[str, Path], method: str, model: str) -> None:
    settings, names = METHODS[method]
    stage, kind, row_type, rows, loss = MODELS[model]
    [held_out] = rows("validation", 1)
    dataset(tmp_path, [*rows("train", 6), held_out], row_type)
    written = {"name": str(bases[kind]), **settings}
    optimisation = {"steps": 3, "global_batch": 4, "learning_rate": 0.05}
    made = run_stage(tmp_path, stage_of(stage, written, optimisation, validation="validation", max_length=64))
    assert all(math.isfinite(line["loss"]) for line in trace(tmp_path))
    folder = Store.at(tmp_path).sub("train").fetch("model")
    with torch.inference_mode():
        found = loss(load_trained(folder, device="cpu"), held_out).item()
    assert found == pytest.approx(made.metrics["validation_loss"], rel=1e-3, abs=1e-4)
    changed = _changed(folder, bases[kind], made.detail)
    assert changed
    head = r"classifier|qa_outputs|pooler|score"
    assert [name for name in changed if not re.search(f"{names}|{head}", name)] == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"packing": {}}, "learnt by token_classification, and only those of a language model are packed"),
        ({"tasks": {}}, "learnt by token_classification, which is not taken apart by task yet"),
    ],
)
def test_what_a_head_cannot_be_trained_with_is_refused(
    tmp_path: Path, bases: dict[str, Path], settings: Row, why: str
) -> None:
    dataset(tmp_path, tagged("train", 4), "tagged")
    with pytest.raises(StageError, match=why):
        run_stage(tmp_path, stage_of("sft", {"name": str(bases["bert"])}, {"steps": 1}, max_length=64, **settings))


def _changed(folder: Path, base: Path, detail: dict[str, Any]) -> list[str]:
    """Names of the weights that training left other than they were; of an adapter, all that it holds."""
    if detail["peft"]:
        return list(load_file(folder / "adapter_model.safetensors"))
    before = load_pretrained(base, detail["objective"], tuple(detail["labels"])).model.state_dict()
    after = load_pretrained(folder, detail["objective"], tuple(detail["labels"])).model.state_dict()
    return [name for name, value in after.items() if not torch.equal(value, before[name])]


def table() -> str:
    """What CONTRIBUTING.md says of the methods."""
    lines = [f"| method | {' | '.join(MODELS)} |", f"|---|{'---|' * len(MODELS)}"]
    for method in METHODS:
        cells = [UNSUPPORTED.get((method, model), "yes") for model in MODELS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines.append(f"| qlora | {' | '.join(['GPU only, not tested'] * len(MODELS))} |")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_this_one(root: Path) -> None:
    assert table() in (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
