"""What gradients of single tasks cost: training with PCGrad beside plain training on the same rows of three tasks.

Both train MiniLM for the same steps in this process; plain training has no tasks at all. Time is that of the steps,
as the trace tells it, without loading and saving.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.bench.paired import Facts, paired
from tests.bench.result import Options, Result, banking_texts
from tests.bench.training import trained
from tests.bench.units import quiet
from tilth.data.schema import original

SUMMARY = "rows/s with per-task gradients and PCGrad, over plain training"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BATCH = 24
SIDES: dict[str, dict[str, Any]] = {"LoRA": {"name": MODEL, "lora": {"rank": 8}}, "all weights": {"name": MODEL}}


def missing(options: Options) -> str | None:
    return None


def measure(options: Options) -> Iterator[Result]:
    quiet()
    steps = options.size(4, 40)
    for what, model in SIDES.items():
        for kind in ("none", "pcgrad") if options.full else ("pcgrad",):
            ours = partial(_trained, model, steps, {"conflict": {"kind": kind}, "sampling": {"kind": "equal"}})
            found = paired(ours, partial(_trained, model, steps, None), options.rounds)
            yield _result(f"tasks: conflict {kind} / plain, {what}", found.ratio(), options.rounds, steps)


def _result(what: str, ratio: float, rounds: int, steps: int) -> Result:
    return Result(what, ratio, rounds, note=f"{steps} steps of {BATCH} rows of 3 tasks, micro-batches of 8")


def _trained(model: dict[str, Any], steps: int, tasks: Any) -> Facts:
    texts = banking_texts(steps * BATCH)
    rows = [
        {**original(f"r{n}", "train", {"text": text, "label": f"label{n % 5}"}), "task": "abc"[n % 3]}
        for n, text in enumerate(texts)
    ]
    stage = {
        "kind": "sft", "model": model, "tasks": tasks, "max_length": 48,
        "optimisation": {"steps": steps, "global_batch": BATCH}, "scale": {"workers": 0, "micro_batch": 8},
    }  # fmt: skip
    # the first step also warms up
    lines = trained(stage, rows, "labelled")
    return {"rate": BATCH * (steps - 1) / sum(line["seconds"] for line in lines[1:])}
