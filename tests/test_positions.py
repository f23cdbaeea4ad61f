"""Tokens that fit a model, held against what models of each family take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from tilth.augment.classifiers import SequenceClassifier
from tilth.data.embeddings import Embedder
from tilth.data.positions import positions
from tiny import tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES = (
    "bert", "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
WORDS = " ".join(["word"] * 100)


def config_of(kind: str, **more: Any) -> Any:
    marks = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    extra = {"attention_window": 8} if kind == "longformer" else {}
    sizes = SIZES if kind != "bloom" else {"hidden_size": 16, "n_layer": 1, "n_head": 2}
    made = AutoConfig.for_model(kind, vocab_size=300, **sizes, **marks, **extra, **more)
    if kind == "xmod":
        made.default_language = "en_XX"
    return made


@pytest.mark.parametrize("kind", FAMILIES)
def test_as_many_tokens_fit_as_are_told_and_no_more(kind: str) -> None:
    torch.manual_seed(0)
    config = config_of(kind, max_position_embeddings=34)
    model, most = AutoModel.from_config(config).eval(), positions(config)
    assert most == (34 if kind == "bert" else 32)
    with torch.inference_mode():
        assert model(torch.full((1, most), 9)).last_hidden_state.shape[1] == most
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, most + 1), 9))


def test_relative_positions_have_no_limit() -> None:
    assert positions(config_of("bloom")) is None
    assert positions(AutoConfig.for_model("t5")) is None


@pytest.mark.parametrize("kind", ["roberta", "bloom"])
def test_a_text_beyond_the_positions_is_cut(kind: str, tmp_path: Path) -> None:
    """A tokenizer that tells no limit of its own."""
    more = {} if kind == "bloom" else {"max_position_embeddings": 34}
    AutoModelForSequenceClassification.from_config(config_of(kind, num_labels=2, **more)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    [row] = SequenceClassifier(tmp_path, None).probabilities([WORDS])
    assert sum(row) == pytest.approx(1)
    assert Embedder(tmp_path).encode([WORDS]).shape == (1, 16)
