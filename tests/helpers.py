"""Small things that tests of several subjects need."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tilth.data.dataset import Dataset, Shard
from tilth.data.schema import original, to_table
from tilth.runs import Artifact, Run
from tilth.storage import Store


def write_dataset(store: Store, rows: Iterable[dict[str, Any]], row_type: str = "labelled") -> Dataset:
    """A finished dataset of `rows` under `store`, one shard per split, without the data stage."""
    by_split: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_split[row["split"]].append(row)
    shards = []
    for split, members in by_split.items():
        name = f"data/{split}-00000.parquet"
        table = to_table(members, row_type)
        store.write_with(name, lambda handle, table=table: pq.write_table(table, handle))
        shards.append(Shard(name, split, len(members), 0, ""))
    counts = {"inputs": sum(s.rows for s in shards), "accepted": sum(s.rows for s in shards)}
    dataset = Dataset(store, row_type, tuple(shards), (), counts)
    dataset.save()
    return dataset


def finished_stage(
    run: Run, name: str, kind: str = "data", produces: str = "dataset", reused: bool = False, **artifact: Any
) -> Artifact:
    """A finished stage in the run's plan, as if it had run; `artifact` gives its metrics, counts, detail."""
    store = run.store.sub(f"stages/{name}/{'0' * 16}")
    found = Artifact(name, kind, produces, "0" * 64, store, {}, created="2026-01-01", seconds=1.5, **artifact)
    found.save()
    step = {"stage": name, "fingerprint": "0" * 64, "reused": reused, "why": "it has not run here yet"}
    run.store.write_json("plan.json", [*(run.store.read_json("plan.json") or []), step])
    return found


def reject(dataset: Dataset, rows: list[dict[str, Any]]) -> Dataset:
    """The same dataset with dropped rows, each of which has its reason."""
    table = to_table(rows, dataset.row_type)
    dataset.store.write_with("rejected/00000.parquet", lambda handle: pq.write_table(table, handle))
    held = replace(dataset, rejected=(Shard("rejected/00000.parquet", "rejected", len(rows), 0, ""),))
    held.save()
    return held


def labelled(count: int, split: str = "train") -> list[dict[str, Any]]:
    """Plain labelled rows with ids r0000, r0001, …"""
    return [
        original(f"r{i:04d}", split, {"text": f"row number {i} asks about its card", "label": f"label{i % 3}"})
        for i in range(count)
    ]


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file of a finished dataset."""
    files = [*folder.glob("data/*"), *folder.glob("rejected/*"), folder / "dataset.json"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def final(out: Path) -> dict[str, dict[str, str]]:
    """The same of every stage of a run."""
    return {folder.parent.name: contents(folder) for folder in sorted(out.glob("stages/*/*")) if folder.is_dir()}
