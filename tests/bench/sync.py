"""What it costs to hand an updated policy to who draws its completions, beside writing and reading the same bytes.

SmolLM2-135M with an adapter of rank 16 and in full: to vLLM in the process, and to two Ray actors.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.bench.result import Options, Result
from tests.bench.units import quiet
from tilth import cluster, models
from tilth.config import ModelName
from tilth.data.transform import Inputs
from tilth.storage import Store
from tilth.train.config import ModelConfig
from tilth.train.ppo.policy import Policy
from tilth.train.ppo.rollouts import Ask, Home, Rollouts
from tilth.train.ppo.source import Source

SUMMARY = "writing and reading the same bytes, over a sync of the policy's weights"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
METHODS: dict[str, dict[str, Any]] = {"LoRA, rank 16": {"lora": {"rank": 16}}, "all weights": {}}
ENGINES: dict[str, dict[str, Any]] = {
    "vLLM": {"kind": "vllm", "engine": {"kv_cache_gib": 0.5, "max_num_seqs": 8}},
    "two Ray actors": {"kind": "hf", "placement": "disaggregate", "actors": 2, "cpus": 0.5},
}


def missing(options: Options) -> str | None:
    return None if importlib.util.find_spec("vllm") else "needs vLLM"


def measure(options: Options) -> Iterator[Result]:
    quiet()
    with tempfile.TemporaryDirectory() as folder, cluster.session(Store.at(folder)):
        cluster.ray_ready()
        for engine, rollouts in ENGINES.items():
            for method, peft in METHODS.items():
                ours, bare, moved = _measured(Path(folder), peft, rollouts, options.rounds)
                ratios = [floor / seconds for floor, seconds in zip(bare, ours, strict=True)]
                seconds, floor = median(ours), median(bare)
                note = f"{moved / 2**20:.3g} MiB in {seconds:.3g} s, written and read in {floor:.3g} s"
                yield Result(f"sync: {method} to {engine}", median(ratios), options.rounds, note=note)


def _measured(
    folder: Path, peft: dict[str, Any], rollouts: dict[str, Any], rounds: int
) -> tuple[list[float], list[float], int]:
    """Seconds of a sync and of the bare files, round by round, and the bytes of a sync."""
    source = Source(Inputs(), ModelConfig.model_validate({"name": ModelName(str(models.resolve(MODEL))), **peft}))
    policy = Policy(source.model("cpu"), reference=False)
    config = Rollouts.model_validate({**rollouts, "max_tokens": 1})
    generating = config.start(Home(policy, source.tokenizer(), source, 32))
    ours, bare, moved = [], [], 0
    with ExitStack() as stack:
        stack.callback(generating.close)
        for number in range(rounds + 1):
            with torch.no_grad():
                for weight in policy.served().values():
                    weight.mul_(1.001)
            policy.version += 1
            took = _seconds(lambda: _bare(policy, folder / "bare.safetensors"))
            start = time.perf_counter()
            moved = generating.sync()
            # an adapter is read when it is first asked for
            generating.generate([Ask("r", (1, 2, 3), number)])
            if number:
                ours.append(time.perf_counter() - start)
                bare.append(took)
    return ours, bare, moved


def _bare(policy: Policy, file: Path) -> None:
    save_file({name: weight.detach() for name, weight in policy.served().items()}, file)
    load_file(file)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
