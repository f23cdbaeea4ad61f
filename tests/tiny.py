"""Tiny models with random weights and a tokenizer of bytes, built in milliseconds: one of each architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<mask>")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 32, "num_key_value_heads": 2},
    "qwen2": {"intermediate_size": 32, "num_key_value_heads": 2},
    "gpt2": {},
    "bert": {"intermediate_size": 32},
    "t5": {"d_ff": 32, "d_kv": 4},
}
NAMES = {
    "gpt2": {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    "t5": {"hidden_size": "d_model", "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}


def tokenizer(seq2seq: bool = False) -> PreTrainedTokenizerFast:
    """Bytes as tokens, after four special ones; a text begins with <s> and, for an encoder-decoder, ends with </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *alphabet))}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    single = "$A </s>" if seq2seq else "<s> $A"
    inner.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>",
        cls_token="<s>", sep_token="</s>",
    )  # fmt: skip
    made.chat_template = TEMPLATE
    return made


def model_folder(folder: Path, kind: str, dropout: float = 0.0, width: int = 16) -> Path:
    """A model of this architecture without a head's weights for any task, three blocks of four attention heads."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    names = NAMES.get(kind, {})
    sizes = {names.get(key, key): value for key, value in {**SHAPE, "hidden_size": width}.items()}
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=len(SPECIAL) + 256, **sizes, **SIZES[kind], **marks)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate"):
        if hasattr(config, name):
            setattr(config, name, dropout)
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, dropout)
    auto = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}.get(kind, AutoModelForCausalLM)
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(folder)
    tokenizer(kind == "t5").save_pretrained(folder)
    return folder
