"""Scored rows a second: our forward passes beside lm-evaluation-harness, one model, the same rows, the same process.

Choices: four labels of each question ranked by their likelihood. Texts: the log-likelihood of whole texts. Both sides
get the model in memory and the batch that suits them: ours 2,048 padded tokens, the harness 16 sequences sorted by
length. The model is a small Llama with SmolLM2's tokenizer, with --full SmolLM2-135M itself. The package `evaluate`
fetches its metrics from the hub and is not measured where that is out of reach.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.paired import paired, timed
from tests.bench.result import SHARED, Options, Result, compared

SUMMARY = "scored rows/s over lm-evaluation-harness, ranking choices and texts"
AIM = 1.0
CHOICES = 4
SEQUENCES = 16


def missing(options: Options) -> str | None:
    if importlib.util.find_spec("lm_eval") is None:
        return "lm-evaluation-harness is not installed (tilth[harness])"
    needed = [SHARED / "data" / name for name in ("banking77/test.csv", "gsm8k/test.jsonl")]
    absent = [str(path.relative_to(SHARED)) for path in needed if not path.is_file()]
    return f"no {', '.join(absent)} in the folder of real data" if absent else None


def measure(options: Options) -> Iterator[Result]:
    from lm_eval.models.huggingface import HFLM

    from tilth.evaluate.predictor import Predictor

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        predictor = Predictor(_folder(Path(scratch), options))
        theirs = HFLM(
            pretrained=predictor.loaded.model,
            tokenizer=predictor.loaded.tokenizer,
            batch_size=SEQUENCES,
            max_length=512,
        )
        count = options.size(32, 200)
        for name, sides in (("choices", _choices(count)), ("texts", _texts(count))):
            rows, requests = sides
            kind = "loglikelihood" if name == "choices" else "loglikelihood_rolling"
            ours = partial(timed, count, partial(predictor.predict, rows))
            found = paired(ours, partial(timed, count, _harness(theirs, requests, kind)), options.rounds)
            yield compared(f"evaluate: {name} over lm-evaluation-harness", found, AIM, f"{len(rows)} sequences")


def _folder(scratch: Path, options: Options) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tilth.data.loading import load_tokenizer
    from tilth.models import resolve

    real = resolve("HuggingFaceTB/SmolLM2-135M-Instruct")
    if options.full:
        return real
    tokenizer = load_tokenizer(real)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=3,
        max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    return scratch


def _choices(count: int) -> tuple[list[dict[str, Any]], list[tuple[str, ...]]]:
    """Questions with four of the labels each, the right one among them, as rows and as requests."""
    from tilth.data.schema import original

    with (SHARED / "data/banking77/test.csv").open(encoding="utf-8", newline="") as handle:
        found = random.Random(0).sample(list(csv.DictReader(handle)), count)
    labels = sorted({row["category"] for row in found})
    rng, rows, requests = random.Random(1), [], []
    for number, row in enumerate(found):
        offered = [row["category"], *rng.sample([label for label in labels if label != row["category"]], CHOICES - 1)]
        for label in offered:
            before, after = f"{row['text'].strip()}\nLabel:", f" {label.replace('_', ' ')}"
            rows.append(original(f"q{number}", "test", {"prompt": before, "completion": after}))
            requests.append((before, after))
    return rows, requests


def _texts(count: int) -> tuple[list[dict[str, Any]], list[tuple[str, ...]]]:
    from tilth.data.schema import original

    lines = random.Random(2).sample((SHARED / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines(), count)
    texts = [f"{row['question']}\n{row['answer']}" for row in map(json.loads, lines)]
    return [original(f"t{i}", "test", {"text": text}) for i, text in enumerate(texts)], [(text,) for text in texts]


def _harness(model: Any, requests: list[tuple[str, ...]], kind: str) -> Callable[[], object]:
    from lm_eval.api.instance import Instance

    made = [Instance(kind, {}, arguments, index) for index, arguments in enumerate(requests)]
    return lambda: getattr(model, kind)(made, disable_tqdm=True)
