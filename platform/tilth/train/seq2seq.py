"""Encoder-decoders such as T5: the prompt is read by the encoder, the completion learnt by the decoder."""

from __future__ import annotations

from typing import Any

from transformers import DataCollatorForSeq2Seq

from tilth.train.objectives import Parts, cross_entropy, supervised


def seq2seq(parts: Parts) -> Any:
    """transformers' Trainer on prompts and completions; each is cut to `max_length` tokens."""
    tokenizer, length = parts.tokenizer, parts.job.stage.max_length

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer(row["prompt"], truncation=True, max_length=length)["input_ids"]
        labels = tokenizer(text_target=row["completion"], truncation=True, max_length=length)["input_ids"]
        return {"input_ids": ids, "labels": labels}

    collator = DataCollatorForSeq2Seq(tokenizer, model=parts.model)  # the decoder's inputs are the labels, shifted
    return supervised(parts, encode, collator, compute_loss_func=cross_entropy)
