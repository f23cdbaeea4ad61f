"""Hugging Face encoder-decoder models as translators."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSeq2SeqLM

from tilth.augment.engines.tokens import Tokens
from tilth.data.batching import in_batches
from tilth.data.schema import row_seed
from tilth.generate.engines.sampling import Draws, SeededSampling

if TYPE_CHECKING:
    from tilth.augment.translators import Transformers

Item = tuple[list[int], int]


class Seq2SeqEngine:
    """Implements `tilth.augment.translators.Translate`."""

    def __init__(self, config: Transformers, folder: Path) -> None:
        self.decoding = config.decoding
        self.batch_tokens = config.batch_tokens
        self.tokens = Tokens(folder, config.source, config.target)
        self.device = config.device
        if config.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if self.device == "cuda" else torch.float32
        model: Any = AutoModelForSeq2SeqLM.from_pretrained(
            folder, trust_remote_code=False, dtype=dtype, local_files_only=True
        )
        model.generation_config.max_length = None  # ours is max_new_tokens; both together only warn
        self.model = model.eval().to(self.device)

    def __call__(self, sentences: Sequence[str], seeds: Sequence[int], count: int) -> list[list[str]]:
        items = list(zip(self.tokens.encode(sentences), seeds, strict=True))
        copies = count if self.decoding.temperature else max(count, self.decoding.beams)
        run = partial(self._run, count=count)
        return in_batches(items, run, size=self.batch_tokens, length=lambda item: len(item[0]) * copies)

    def _run(self, batch: list[Item], count: int) -> list[list[str]]:
        padded = self.tokens.tokenizer.pad({"input_ids": [ids for ids, _ in batch]}, return_tensors="pt")
        inputs = {name: tensor.to(self.device) for name, tensor in padded.items()}
        if self.decoding.temperature:
            seeds = [row_seed(seed, str(number), "copy") for _, seed in batch for number in range(count)]
            draws = Draws(seeds, [self.decoding.temperature] * len(seeds), self.decoding.top)
            sampling = SeededSampling(draws, self.device)
            inputs = {name: tensor.repeat_interleave(count, dim=0) for name, tensor in inputs.items()}
            how: dict[str, Any] = {"num_beams": 1, "logits_processor": [sampling]}
        else:
            how = {"num_beams": max(self.decoding.beams, count), "num_return_sequences": count}
        if self.tokens.first is not None:
            how["forced_bos_token_id"] = self.tokens.first
        with torch.inference_mode():
            made = self.model.generate(**inputs, max_new_tokens=self.decoding.max_tokens, do_sample=False, **how)
        texts = self.tokens.decode(made.tolist())
        return [texts[at : at + count] for at in range(0, len(texts), count)]
