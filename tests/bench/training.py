"""A stage that trains, run for the time of its steps, without loading and saving."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tilth.data.dataset import Dataset, Shard
from tilth.data.schema import Row, to_table
from tilth.recipe import Stage
from tilth.runs import Artifact, Out
from tilth.storage import Store

Lines = list[dict[str, Any]]


def trained(stage: Mapping[str, Any], rows: Sequence[Row], row_type: str) -> Lines:
    """The trace of the stage, one line a step. Its `data` is `@data`."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.at(Path(folder))
        data = Artifact("data", "data", "dataset", "0" * 64, _dataset(store.sub("data"), rows, row_type).store, {})
        made = Stage.model_validate({"data": "@data", **stage})
        made.run(Out("train", made.kind, "model", "1" * 64, {}, store.sub("train")), {"@data": data})
        return [json.loads(line) for line in store.sub("train").read("trace.jsonl").splitlines()]


def _dataset(store: Store, rows: Sequence[Row], row_type: str) -> Dataset:
    store.write_with("data/train-00000.parquet", lambda handle: pq.write_table(to_table(rows, row_type), handle))
    shard = Shard("data/train-00000.parquet", "train", len(rows), 0, "")
    made = Dataset(store, row_type, (shard,), (), {"inputs": len(rows), "accepted": len(rows)})
    made.save()
    return made
