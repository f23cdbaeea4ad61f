"""CTranslate2 as a translator: conversion once per model content, then batches by tokens."""

from __future__ import annotations

import contextlib
import math
import random
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctranslate2

from tilth import content
from tilth.augment.engines.tokens import Tokens
from tilth.config import ModelName
from tilth.data.batching import in_batches

if TYPE_CHECKING:
    from tilth.augment.translators import CTranslate2

Item = tuple[list[str], int]


def converted(folder: Path, precision: str) -> Path:
    """The directory of the converted model, made on first use under the cache; safe with several workers at once."""
    from ctranslate2.converters import TransformersConverter

    digest = content.identity_of(ModelName(str(folder)))
    target = content.cache_dir() / "ctranslate2" / f"{digest[:24]}-{precision}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial_folder = Path(tempfile.mkdtemp(dir=target.parent))
        TransformersConverter(str(folder)).convert(str(partial_folder), quantization=precision, force=True)
        with contextlib.suppress(OSError):  # another worker was first: its conversion is the same
            partial_folder.rename(target)
    return target


class CTranslate2Engine:
    """Implements `tilth.augment.translators.Translate`."""

    def __init__(self, config: CTranslate2, folder: Path) -> None:
        self.decoding = config.decoding
        self.batch_tokens = config.batch_tokens
        self.tokens = Tokens(folder, config.source, config.target)
        device = config.device
        if device == "auto":
            device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        compute = "int8_float16" if (config.precision, device) == ("int8", "cuda") else config.precision
        model = str(converted(folder, config.precision))
        self.translator: Any = ctranslate2.Translator(model, device=device, compute_type=compute)

    def __call__(self, sentences: Sequence[str], seeds: Sequence[int], count: int) -> list[list[str]]:
        to_tokens = self.tokens.tokenizer.convert_ids_to_tokens
        items = [(to_tokens(ids), seed) for ids, seed in zip(self.tokens.encode(sentences), seeds, strict=True)]
        run = partial(self._run, count=count)
        return in_batches(items, run, size=self.batch_tokens, length=lambda item: len(item[0]))

    def _run(self, batch: list[Item], count: int) -> list[list[str]]:
        wanted = self.decoding.top if self.decoding.temperature else count
        prefix = None
        if self.tokens.first is not None:
            prefix = [self.tokens.tokenizer.convert_ids_to_tokens([self.tokens.first])] * len(batch)
        results = self.translator.translate_batch(
            [tokens for tokens, _ in batch],
            target_prefix=prefix,
            beam_size=max(self.decoding.beams, wanted),
            num_hypotheses=wanted,
            max_decoding_length=self.decoding.max_tokens,
            return_scores=bool(self.decoding.temperature),
        )
        chosen = [self._choose(result, seed, count) for result, (_, seed) in zip(results, batch, strict=True)]
        to_ids = self.tokens.tokenizer.convert_tokens_to_ids
        texts = iter(self.tokens.decode([to_ids(tokens) for hypotheses in chosen for tokens in hypotheses]))
        return [[next(texts) for _ in hypotheses] for hypotheses in chosen]

    def _choose(self, result: Any, seed: int, count: int) -> list[list[str]]:
        """The first hypotheses; or some drawn without replacement (Gumbel-top-k, Kool et al. 2019)."""
        hypotheses: list[list[str]] = result.hypotheses
        if not self.decoding.temperature:
            return hypotheses[:count]
        rng = random.Random(seed)
        keys = []
        for tokens, score in zip(hypotheses, result.scores, strict=True):
            # CTranslate2 divides the log-probability by the length
            log_probability = score * (len(tokens) + 1)
            keys.append(log_probability / self.decoding.temperature - math.log(rng.expovariate(1.0)))
        order = sorted(range(len(keys)), key=lambda index: -keys[index])
        return [hypotheses[index] for index in order[:count]]
