"""The scores of a reward model, batched by tokens."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tilth.data.batching import in_batches
from tilth.errors import StageError
from tilth.generate.base import Message

Scored = tuple[float, bool]


class RewardScorer:
    """(conversation, answer) pairs → (score, whether its beginning was cut off), in order. One call runs at a time."""

    def __init__(self, folder: Path, batch_tokens: int) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        if model.config.num_labels != 1:
            raise StageError(
                f"reward_model: {folder.name} has {model.config.num_labels} outputs, a reward model has one; name "
                "another model, or judge by pairwise or aspects"
            )
        self.model = model.to(self.device).eval()
        self.batch_tokens = batch_tokens
        self.limit = min(self.tokenizer.model_max_length, model.config.max_position_embeddings)
        self.tokenizer.truncation_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.lock = threading.Lock()

    def __call__(self, pairs: Sequence[tuple[Sequence[Message], str]]) -> list[Scored]:
        texts = [self._text(messages, answer) for messages, answer in pairs]
        templated = bool(self.tokenizer.chat_template)
        with self.lock:
            tokens = self.tokenizer(texts, add_special_tokens=not templated)["input_ids"] if texts else []
            cut = [len(item) > self.limit for item in tokens]
            if any(cut):
                tokens = self.tokenizer(
                    texts, add_special_tokens=not templated, truncation=True, max_length=self.limit
                )["input_ids"]
            scores = in_batches(tokens, self._forward, size=self.batch_tokens, length=len)
        return list(zip(scores, cut, strict=True))

    def _text(self, messages: Sequence[Message], answer: str) -> str:
        turns = [*map(dict, messages), {"role": "assistant", "content": answer}]
        if self.tokenizer.chat_template:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        return "\n\n".join(turn["content"] for turn in turns)

    def _forward(self, tokens: list[list[int]]) -> list[float]:
        padded: Any = self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            logits = self.model(**padded).logits.float().cpu()
        # float error moves the last decimals with the batch: rounded, an answer is scored alike wherever it stands
        return [round(value, 4) for value in logits[:, 0].tolist()]
