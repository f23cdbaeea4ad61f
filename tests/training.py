"""Running a training stage without the rest of a recipe; as a script, in a process that a test may kill.

python tests/training.py ROOT STAGE.yaml
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from helpers import write_dataset
from processes import descendants, titled
from tilth.config import digest, identity
from tilth.content import identity_of
from tilth.data.dataset import Dataset
from tilth.data.loading import load_pretrained, load_tokenizer
from tilth.data.schema import original
from tilth.models import resolve
from tilth.recipe import Stage
from tilth.runs import Artifact, Out
from tilth.storage import Store
from tilth.train import trace as traces
from tilth.train.checkpoint import StoreLink
from tilth.train.job import Job
from tilth.train.preflight import prepare

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"


def questions(count: int, split: str = "train") -> list[dict[str, Any]]:
    """Labelled rows of different lengths, ids t000, t001, …"""
    subjects = ("card", "transfer", "exchange rate")
    return [
        original(
            f"{split[0]}{i:03d}",
            split,
            {"text": f"{'Please tell me, ' * (i % 4)}where is {subjects[i % 3]} number {i}?", "label": subjects[i % 3]},
        )
        for i in range(count)
    ]


def stage_of(kind: str, model: Any, optimisation: dict[str, Any], **fields: Any) -> Stage:
    """A training stage on "@data" in this process, with short rows and small batches unless told otherwise."""
    defaults = {"data": "@data", "max_length": 32, "scale": {"workers": 0, "micro_batch": 4}}
    settings = {"global_batch": 8, "learning_rate": 1e-3, **optimisation}
    return Stage.model_validate({"kind": kind, **defaults, "model": model, "optimisation": settings, **fields})


def run_stage(root: str | Path, stage: Stage, **others: Path) -> Artifact:
    """The artifact of `stage` trained under `root`, on the dataset in `root/data`; `others` are such roots by name."""
    return stage.run(*_given(root, stage, **others))


def job_of(root: str | Path, stage: Any) -> Job:
    """The same as a job, for a test that trains by itself."""
    return prepare(stage, *_given(root, stage))


def _given(root: str | Path, stage: Stage, **others: Path) -> tuple[Out, dict[str, Artifact]]:
    store = Store.at(root)
    roots = {"data": store, **{name: Store.at(other) for name, other in others.items()}}
    parts = identity(stage, lambda value: str(value) if value.startswith("@") else identity_of(value))
    data = {f"@{name}": Artifact(name, "data", "dataset", "0" * 64, at.sub("data"), {}) for name, at in roots.items()}
    out = Out("train", stage.kind, "model", digest(parts), parts, store.sub("train"))
    return out, data


def dataset(root: str | Path, rows: list[dict[str, Any]], row_type: str = "labelled") -> Dataset:
    return write_dataset(Store.at(root).sub("data"), rows, row_type)


def trace(root: str | Path) -> list[dict[str, Any]]:
    """The steps of a training run; what it took in seconds left out."""
    lines = traces.read(Store.at(root).sub("train"))
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def without_dropout(folder: Path) -> Path:
    """MiniLM with dropout off, so that its loss does not depend on which worker drew which random number."""
    source = resolve(MINILM)
    model = load_pretrained(source, "masked_lm").model
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)
    return folder


def tiny_llama(folder: Path, **changes: Any) -> Path:
    """A Llama of two small layers with random weights, which reads with SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(resolve(SMOLLM))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes, **ends, **changes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Dying(StoreLink):
    """Ends the process's training as soon as a checkpoint lies on storage."""

    def commit(self, folder: Path, step: int) -> None:
        super().commit(folder, step)
        raise KeyboardInterrupt


def at_step(root: Path, step: int, act: Callable[[dict[str, Any]], None], alive: Callable[[], bool]) -> None:
    """Call `act` with the progress of a run once it has reached `step`."""
    while alive():
        file = root / "train" / "progress.json"
        progress = json.loads(file.read_text()) if file.exists() else {"step": 0}
        if progress["step"] >= step:
            act(progress)
            return
        time.sleep(0.02)


def die(root: Path, what: Stage, step: int) -> None:
    """Train in a process of its own, and kill that at `step`."""
    recipe = root / "stage.yaml"
    recipe.write_text(yaml.safe_dump(what.model_dump()))
    process = subprocess.Popen([sys.executable, __file__, root, recipe], start_new_session=True)
    at_step(root, step, lambda _: os.killpg(process.pid, signal.SIGKILL), lambda: process.poll() is None)
    assert process.wait() == -signal.SIGKILL


@contextmanager
def killer(root: Path, at: int, title: str | None = None) -> Iterator[list[int]]:
    """Kill worker 0 of the training under `root` once it has reached step `at`, or a process of ours with such a title.

    Yields the pids killed.
    """
    killed: list[int] = []
    done = threading.Event()

    def kill(progress: dict[str, Any]) -> None:
        pid = titled(descendants(os.getpid()), title)[0] if title else progress["pid"]
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    thread = threading.Thread(target=at_step, args=(root, at, kill, lambda: not done.is_set()))
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    run_stage(Path(sys.argv[1]), Stage.model_validate(yaml.safe_load(Path(sys.argv[2]).read_text())))
