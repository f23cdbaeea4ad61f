"""Small things that tests of several subjects need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq

from tilth.data.dataset import Dataset, Shard
from tilth.data.schema import original, to_table
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


def labelled(count: int, split: str = "train") -> list[dict[str, Any]]:
    """Plain labelled rows with ids r0000, r0001, …"""
    return [
        original(f"r{i:04d}", split, {"text": f"row number {i} asks about its card", "label": f"label{i % 3}"})
        for i in range(count)
    ]
