"""The trials for TensorBoard: one run each, whose values and scores its page of hyperparameters sets side by side."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.summary.writer.event_file_writer import EventFileWriter

if TYPE_CHECKING:
    from tilth.search.trials import Trial
    from tilth.storage import Store

FOLDER = "tensorboard"


def write(store: Store, trials: Sequence[Trial]) -> None:
    """Write the trials under `store`, with the curve of each, instead of what was written before."""
    folder = store.scratch()
    for trial in trials:
        _write(folder / f"trial-{trial.number:05d}", trial)
    store.remove(FOLDER)
    for file in sorted(folder.glob("trial-*/*")):
        store.adopt(f"{FOLDER}/{file.relative_to(folder).as_posix()}", file)
    shutil.rmtree(folder)


def _write(folder: Path, trial: Trial) -> None:
    now = time.time()
    writer = EventFileWriter(str(folder))
    for step, summary in _summaries(trial):
        writer.add_event(Event(wall_time=now, step=step, summary=summary))
    writer.close()


def _summaries(trial: Trial) -> Iterator[tuple[int, Any]]:
    values = {
        path: value if isinstance(value, int | float | str) else json.dumps(value)
        for path, value in trial.values.items()
    }
    yield 0, hparams.hparams_pb(values, trial_id=f"trial {trial.number}")
    for name, score in trial.scores.items():
        yield 0, Summary(value=[Summary.Value(tag=f"score/{name}", simple_value=score)])
    for step, value in trial.curve:
        yield step, Summary(value=[Summary.Value(tag="on the way", simple_value=value)])
