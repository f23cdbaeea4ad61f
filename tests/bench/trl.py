"""Fine-tuning: stage `sft` on Ray Train beside TRL's SFTTrainer under `accelerate launch`, at equal settings.

Both train SmolLM2-135M with LoRA in float32 on the same rows in the same batches, one worker with all cores, so that
each step does the same sums; where their losses part by more than rounding there is no result. Compared are useful
tokens a second of the steps after the first two. What comes before the first step (Ray Train, imports, the model) and
after the last is told in the note, as seconds of the whole call without its steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.paired import ROOT, Facts, Paired, Worker, paired, serve_one
from tests.bench.result import Options, Result, banking_texts
from tests.bench.training import Lines, trained
from tests.bench.units import quiet
from tilth.data.schema import Row, original

SUMMARY = "useful tokens/s of stage sft on Ray Train, over TRL under accelerate"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
AIM = 0.98
BATCH, MAX_LENGTH, RANK, RATE, WARM = 4, 64, 16, 1e-4, 2
#: by how much losses may differ, relatively: the sums of two processes are not added in one order
ROUNDING = 1e-3


def rows_of(count: int) -> list[Row]:
    """So many prompts with completions: questions of a bank's customers, and the same in capitals."""
    texts = banking_texts(count)
    return [original(f"r{n:04d}", "train", _pair(text)) for n, text in enumerate(texts)]


def _pair(text: str) -> dict[str, str]:
    return {"prompt": f"Question: {text}\nIn capitals:", "completion": f" {text.upper()}"}


def ours(steps: int) -> Callable[[], Facts]:
    from tilth import cluster

    quiet()
    cluster.ray_ready()
    stage = {
        "kind": "sft", "model": {"name": MODEL, "lora": {"rank": RANK}}, "max_length": MAX_LENGTH,
        "optimisation": {"steps": steps, "global_batch": BATCH, "learning_rate": RATE, "warmup": 0.0},
        "scale": {"workers": 1, "cpus": os.cpu_count(), "micro_batch": BATCH},
    }  # fmt: skip
    rows = rows_of(steps * BATCH)

    def once() -> Facts:
        start = time.perf_counter()
        return _facts(trained(stage, rows, "completion"), time.perf_counter() - start)

    return once


def plain(steps: int, order: Path) -> Callable[[], Facts]:
    """TRL as its users run it; `order` holds the rows of each of our steps."""
    cores = str(os.cpu_count())
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", cores,
        "-m", __spec__.name, "--script", str(steps), str(order),
    ]  # fmt: skip

    def once() -> Facts:
        start = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": cores, "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return _facts(json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - start)

    return once


def script(steps: int, order: Path) -> None:
    """What accelerate launches: a plain fine-tuning script; prints a line for each step."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tilth.models import resolve

    source = resolve(MODEL)
    by_id = {row["id"]: row for row in rows_of(steps * BATCH)}
    found = [by_id[name] for names in json.loads(order.read_text(encoding="utf-8")) for name in names]
    data = Dataset.from_list([{name: row[name] for name in ("prompt", "completion")} for row in found])
    lines: Lines = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        then = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.then = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" in logs:
                now = time.monotonic()
                lines.append({"loss": logs["loss"], "seconds": now - self.then})
                self.then = now

    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=RATE,
            lr_scheduler_type="linear", max_length=MAX_LENGTH, completion_only_loss=True, bf16=False,
            gradient_checkpointing=False, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True,
            train_sampling_strategy="sequential", disable_tqdm=True, optim="adamw_torch", seed=0,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(source, dtype="float32"), args=args, train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(source), callbacks=[Clock()],
            peft_config=LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        trainer.train()
        lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    for number, line in enumerate(lines):
        line["tokens"] = sum(lengths[number * BATCH : (number + 1) * BATCH])
    print(json.dumps(lines), flush=True)


def _facts(lines: Lines, seconds: float) -> Facts:
    steady = lines[WARM:]
    spent = sum(line["seconds"] for line in steady)
    return {
        "rate": sum(line["tokens"] for line in steady) / spent, "s": spent,
        "around": seconds - sum(line["seconds"] for line in lines), "losses": [line["loss"] for line in lines],
        "rows": [line.get("rows") for line in lines], "tokens": [line["tokens"] for line in lines],
    }  # fmt: skip


def missing(options: Options) -> str | None:
    return None


def measure(options: Options) -> Iterator[Result]:
    steps = options.size(12, 40)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        a = stack.enter_context(Worker(__spec__.name, "ours", str(steps)))
        order = place / "order.json"
        order.write_text(json.dumps(a()["rows"]), encoding="utf-8")
        b = stack.enter_context(Worker(__spec__.name, "plain", str(steps), str(order)))
        found = paired(a, b, options.rounds, warm=False)
    yield _compared(found, steps)


def _compared(found: Paired, steps: int) -> Result:
    x, y = found.a[0], found.b[0]
    if x["tokens"] != y["tokens"]:
        raise RuntimeError(f"the sides trained on other tokens: {x['tokens']} and {y['tokens']}")
    apart = max(abs(one - two) / two for one, two in zip(x["losses"], y["losses"], strict=True))
    if apart > ROUNDING:
        raise RuntimeError(f"the losses part by {apart:.2g}: {x['losses']} and {y['losses']}")
    a, b = found.medians()
    around = [median(facts["around"] for facts in side) for side in (found.a, found.b)]
    note = (
        f"{a:.4g} and {b:.4g} tokens/s; {steps} steps of {BATCH} rows, losses equal to {apart:.1g}; "
        f"before the first step and after the last {around[0]:.0f} and {around[1]:.0f} s"
    )
    return Result("sft on Ray Train / TRL under accelerate", found.ratio(), len(found.a), AIM, note=note)


def _side(name: str, arguments: Sequence[str]) -> Callable[[], Facts]:
    return ours(int(arguments[0])) if name == "ours" else plain(int(arguments[0]), Path(arguments[1]))


if __name__ == "__main__":
    if sys.argv[1] == "--script":
        script(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        serve_one({name: lambda arguments, name=name: _side(name, arguments) for name in ("ours", "plain")})  # type: ignore[misc]
