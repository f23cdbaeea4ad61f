"""Training on packs beside training on padded batches: useful tokens a second, of rows with real lengths.

Both sides do the forward and backward pass of one model over the same rows in the same random order, by the collators
that training uses: eight rows padded to the longest of them, or packs of as many tokens as such a batch may hold. The
model is a small Llama with SmolLM2's tokenizer. What packing costs, its wider attention masks, is thus counted.
"""

from __future__ import annotations

import csv
import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.bench.paired import Facts, paired
from tests.bench.result import SHARED, Options, Result

SUMMARY = "useful tokens/s of packed over padded batches, forward and backward"
AIM = 1.5
ROWS_AT_ONCE = 8
MAX_LENGTH = 512


def missing(options: Options) -> str | None:
    needed = [SHARED / "data" / name for name in ("banking77/test.csv", "gsm8k/test.jsonl")]
    absent = [str(path.relative_to(SHARED)) for path in needed if not path.is_file()]
    return f"no {', '.join(absent)} in the folder of real data" if absent else None


def measure(options: Options) -> Iterator[Result]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tilth.data.loading import load_tokenizer
    from tilth.models import resolve

    tokenizer = load_tokenizer(resolve("HuggingFaceTB/SmolLM2-135M-Instruct"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=3
    )
    model = LlamaForCausalLM(config).train()
    count = options.size(48, 384)
    banking, maths = _banking(count), _gsm8k(count)
    halves = banking[: count // 2] + maths[: count // 2]
    for name, texts in (("banking77", banking), ("gsm8k", maths), ("half of each", halves)):
        rows = _encoded(tokenizer, texts)
        yield _compared(name, model, rows, tokenizer.pad_token_id, options.rounds)


def _banking(count: int) -> list[str]:
    with (SHARED / "data/banking77/test.csv").open(encoding="utf-8", newline="") as handle:
        texts = [f"{row['text']} {row['category']}" for row in csv.DictReader(handle)]
    return random.Random(0).sample(texts, count)


def _gsm8k(count: int) -> list[str]:
    lines = (SHARED / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    return [f"{row['question']}\n{row['answer']}" for row in map(json.loads, random.Random(0).sample(lines, count))]


def _encoded(tokenizer: Any, texts: list[str]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    ids = [tokenizer(text + tokenizer.eos_token)["input_ids"][:MAX_LENGTH] for text in texts]
    random.Random(1).shuffle(ids)
    return datasets.Dataset.from_dict({"id": [str(i) for i in range(len(ids))], "input_ids": ids, "labels": ids})


def _compared(name: str, model: Any, rows: Any, pad: int, rounds: int) -> Result:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from tilth.train.collate import Collate
    from tilth.train.packing import CollatePacks, pack

    packs = list(pack(rows, MAX_LENGTH, f"bench-{name}"))
    longest = max(len(row["input_ids"]) for row in rows)
    at_once = max(1, ROWS_AT_ONCE * longest // MAX_LENGTH)
    padded = _passes(model, list(rows), ROWS_AT_ONCE, Collate(DataCollatorForLanguageModeling(pad)))
    packed = _passes(model, packs, at_once, CollatePacks(pad))
    found = paired(packed, padded, rounds)
    a, b = found.medians()
    note = f"{a:,.0f} and {b:,.0f} tokens/s; {len(rows)} rows in {len(packs)} packs"
    return Result(f"packing: {name}", found.ratio(), rounds, AIM, found.ratio("cpu_rate"), note=note)


def _passes(model: Any, rows: list[dict[str, Any]], at_once: int, collate: Any) -> Callable[[], Facts]:
    from tilth.train.watch import ROWS, TOKENS

    batches = [collate(rows[start : start + at_once]) for start in range(0, len(rows), at_once)]
    tokens = sum(sum(batch.pop(TOKENS)) for batch in batches)
    for batch in batches:
        del batch[ROWS]

    def work() -> Facts:
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            model(**batch, use_cache=False).loss.backward()
            model.zero_grad()
        return {"rate": tokens / (time.perf_counter() - wall), "cpu_rate": tokens / (time.process_time() - cpu)}

    return work
