"""Trials that tests train together; as a script, one rank of a data-parallel pack.

python tests/together.py ROOT, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tilth.config import digest, identity
from tilth.recipe import Stage
from tilth.runs import Artifact, Out
from tilth.storage import Store
from tilth.train.sft import Sft
from tilth.trials import Outcome, Trial
from training import stage_of

Settings = dict[str, Any]


def sft(root: Path, peft: Settings, model: str = "llama", fields: Settings | None = None, **optimisation: Any) -> Stage:
    settings = {"global_batch": 4, "steps": 5, "learning_rate": 1e-2, **optimisation}
    return stage_of("sft", {"name": str(root / model), "peft": peft}, settings, **{"max_length": 64, **(fields or {})})


def trial(root: Path, place: str, name: str, stage: Stage) -> Trial:
    """The stage as a trial that works under `root/place/name`."""
    parts = identity(stage, str)
    out = Out(name, stage.kind, "model", digest(parts), parts, Store.at(root / place / name))
    data = Artifact("data", "data", "dataset", "0" * 64, Store.at(root / "data"), {})
    return Trial(name, stage, out, {"@data": data})


def packed(root: Path, place: str, stages: dict[str, Stage], places: int = 8, **options: Any) -> dict[str, Outcome]:
    judge = options.pop("judge", lambda report: True)
    trials = [trial(root, place, name, stage) for name, stage in stages.items()]
    return {outcome.trial: outcome for outcome in Sft.pack(trials, places, judge)}


def of_different_kinds(root: Path) -> dict[str, Stage]:
    """LoRA of two ranks, orders of rows and sizes of steps."""
    return {
        "one": sft(root, {"kind": "lora", "rank": 2}, fields={"scale": {"workers": 0}}, steps=3),
        "another": sft(
            root, {"kind": "lora"}, fields={"scale": {"workers": 0, "micro_batch": 2}}, seed=1, global_batch=8
        ),
    }


if __name__ == "__main__":
    import torch

    torch.distributed.init_process_group("gloo")
    place = Path(sys.argv[1])
    for outcome in packed(place, "ranks", of_different_kinds(place)).values():
        if outcome.why:
            raise RuntimeError(outcome.why)
