"""The device's memory: how much of it is free, and whether an error says that there is none left."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tilth.train.memory import GIB

if TYPE_CHECKING:
    from tilth.train.config import Scale

#: what PyTorch's allocators, and the libraries below it, say in a RuntimeError
_FULL = re.compile(r"DefaultCPUAllocator|not enough memory|out of memory|ALLOC_FAILED", re.IGNORECASE)
#: where Linux tells what a container may take
_GROUP = Path("/sys/fs/cgroup")


def free(scale: Scale, on_workers: bool = False) -> float:
    """Bytes that are free for a pack: of the first GPU, or of this machine; no more than the recipe says there is.

    On workers those of each, which are looked at where they can only be on this machine.
    """
    if on_workers and (scale.nodes.selector or "RAY_ADDRESS" in os.environ):
        found = float("inf")
    else:
        found = _of_gpu() * (min(1.0, scale.gpus) if on_workers else 1.0) if scale.gpus else _of_machine()
        found /= scale.workers if on_workers and not scale.gpus else 1
    return found if scale.memory_gib is None else min(found, scale.memory_gib * GIB)


def _of_gpu() -> float:
    import torch

    if not torch.cuda.is_available():  # such a trial is run by itself
        return float("inf")
    kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return float(torch.cuda.mem_get_info()[0] + kept)


def _of_machine() -> float:
    import psutil  # type: ignore[import-untyped]

    return min(float(psutil.virtual_memory().available), _of_group(_GROUP))


def _of_group(folder: Path) -> float:
    """What is left of a container's limit; files that are cached give way."""
    try:
        most = (folder / "memory.max").read_text().strip()
        taken = int((folder / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if most == "max" else float(int(most) - taken + (int(cached[1]) if cached else 0))


def exhausted(error: BaseException) -> bool:
    """Whether memory has run out, on a device or on the CPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_FULL.search(str(error))))
