"""Why vLLM did not start, or died: its words, with the numbers and a setting that fits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_ERROR = re.compile(r"^(?:\(.*?\) *)?(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt)): (.+)$", re.MULTILINE)
# what a process says of another that failed
_ECHOES = ("Engine core initialization failed", "WorkerProc initialization failed", "EngineCore encountered an issue")
_KV_SHORT = re.compile(
    r"max seq len \((\d+)\), \(?([\d.]+) GiB KV cache is needed.*?KV cache memory \(([\d.]+) GiB\)"
    r"(?:.*?estimated maximum model length is (\d+))?",
    re.DOTALL,
)
_NODE_SHORT = re.compile(
    r"Available memory on node \d+ \(([\d.]+)/([\d.]+) GiB\).*?less than.*?([\d.]+) GiB\)", re.DOTALL
)
_GPU_SHORT = re.compile(
    r"Free memory on device \S+ \(([\d.]+)/([\d.]+) GiB\).*?utilization \(([\d.]+), ([\d.]+) GiB\)", re.DOTALL
)


def last_error(said: str) -> str:
    """The first error in a log that is not the echo of another; empty where there is none."""
    found = [f"{kind}: {words}" for kind, words in _ERROR.findall(said)]
    return next((words for words in found if not any(echo in words for echo in _ECHOES)), "")


def start_error(error: BaseException, said: str, arguments: Mapping[str, Any]) -> str:
    """What to tell a person of an engine that did not start with these arguments."""
    words = f"{said}\n{error}"
    model = arguments["model"]
    if found := _KV_SHORT.search(words):
        length, needed, available, fits = found.groups()
        mend = f"set max_model_len to at most {fits}, or " if fits else "set max_model_len lower, or "
        return (
            f"{model}: a text of {length} tokens needs {needed} GiB of KV cache, {available} GiB are available; "
            f"{mend}engine.kv_cache_gib to at least {needed}{_or_share(arguments)}"
        )
    if found := _GPU_SHORT.search(words):
        free, total, share, needed = found.groups()
        fits = int(100 * float(free) / float(total)) / 100
        return (
            f"{model}: engine.gpu_memory_utilization {share} is {needed} GiB, {free} of {total} GiB are free; "
            f"set it to at most {fits:.2f}, or end what else uses the GPU"
        )
    if found := _NODE_SHORT.search(words):
        free, total, needed = found.groups()
        return (
            f"{model}: engine.kv_cache_gib is {needed} GiB, {free} of {total} GiB of memory are available; "
            f"set it to at most {float(free) / 2:.1f}, or use fewer workers"
        )
    why = last_error(said) or f"{type(error).__name__}: {error}"
    if "out of memory" in words or "No available memory for the cache blocks" in words:
        return (
            f"{model} and its KV cache do not fit in the GPU's memory ({why}); "
            "use more GPUs (engine.tensor_parallel), a smaller max_model_len or engine.max_num_seqs, or quantization"
        )
    return f"vLLM cannot start with {model}: {why}"


def _or_share(arguments: Mapping[str, Any]) -> str:
    """The other way to more cache: a larger share, where the cache has no size of its own."""
    share = arguments.get("gpu_memory_utilization")
    return "" if arguments.get("kv_cache_memory_bytes") else f", or engine.gpu_memory_utilization above {share}"
