"""A process with a vLLM generator that a test may kill: prints "starting", then "ready", then asks until its end.

python tests/ask_vllm.py
"""

from __future__ import annotations

import sys

from tilth.data.transform import Inputs
from tilth.generate.base import Prompt
from tilth.generate.vllm import Vllm, VllmEngine

SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main() -> None:
    print("starting", flush=True)
    ask = Vllm(model=SMOLLM, max_model_len=512, engine=VllmEngine(kv_cache_gib=0.5)).open(Inputs())
    print("ready", flush=True)
    while sys.argv[1:] != ["once"]:
        ask([Prompt("Once upon a time", seed=seed, max_tokens=200) for seed in range(8)])


if __name__ == "__main__":
    main()
