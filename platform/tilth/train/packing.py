"""Packing: several rows in one sequence, so that hardly a token of a batch is padding.

Rows are laid together by best-fit decreasing (Ding et al. 2024, arXiv:2404.10830), here by TRL's `pack_dataset`, over a
thousand rows at a time, or before training by the stage `pack`. Positions begin anew with every row, and no row attends
to another, which `tilth.train.independence` measures on the very model before training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from trl import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tilth.train.masking import IGNORED
from tilth.train.watch import ROWS, TOKENS


def pack(rows: datasets.Dataset, length: int, key: str) -> datasets.Dataset:
    """Memory-mapped packs of at most `length` tokens: input_ids, labels, seq_lengths, and `ids` of their rows.

    `rows` have id, input_ids, labels; none is longer than `length`. `key` names the result in the cache.
    """
    names = rows["id"]

    def numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {"row": [number] * len(row["input_ids"])}

    def named(found: dict[str, Any]) -> dict[str, Any]:
        starts = accumulate(found["seq_lengths"][:-1], initial=0)
        return {"ids": [names[found["row"][start]] for start in starts]}

    extra = [name for name in rows.column_names if name not in ("input_ids", "labels")]
    rows = rows.map(numbered, with_indices=True, remove_columns=extra, new_fingerprint=f"{key}-numbered")
    packs = pack_dataset(rows, length, "bfd", {"new_fingerprint": f"{key}-packed", "desc": "Packing"})
    return packs.map(named, remove_columns=["row"], new_fingerprint=f"{key}-named", desc="Naming")


def gathered(rows: datasets.Dataset, file: str, key: str) -> datasets.Dataset:
    """The same packs of rows that the stage `pack` has laid side by side; no token passes through Python.

    `rows` have id, input_ids, labels, pack. The result lies in `file`, `key` is its fingerprint.
    """
    table = rows.data.table if rows._indices is None else rows.flatten_indices().data.table
    names = table["pack"].combine_chunks()
    edges = np.flatnonzero(pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)) + 1
    starts = np.concatenate([[0], edges])
    spans = datasets.Dataset.from_dict({"start": starts, "stop": np.append(edges, len(names))}).with_format("arrow")

    def laid(spans: pa.Table) -> pa.Table:
        starts, stop = spans["start"].to_numpy(), spans["stop"][-1].as_py()
        own, first = table.slice(starts[0], stop - starts[0]), starts - starts[0]
        ids, labels = (own[name].combine_chunks() for name in ("input_ids", "labels"))
        edges = np.append(first, len(own))
        tokens = np.concatenate([[0], np.cumsum(pc.list_value_length(ids).to_numpy())])[edges]
        columns = {
            "input_ids": _lists(tokens, ids.flatten()),
            "labels": _lists(tokens, labels.flatten()),
            "seq_lengths": _lists(edges, pc.list_value_length(ids)),
            "ids": _lists(edges, own["id"].combine_chunks()),
        }
        return pa.table(columns)

    kept = {"cache_file_name": file, "new_fingerprint": key}
    return spans.map(laid, batched=True, remove_columns=["start", "stop"], desc="Gathering", **kept).with_format(None)


def _lists(edges: Any, values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array(edges, pa.int32()), values)


@dataclass(frozen=True)
class CollatePacks:
    """Batches of packs [packs, longest]: input_ids, labels, position_ids; of each pack its rows' ids and tokens."""

    pad_token_id: int
    inner: Any = field(init=False)

    def __post_init__(self) -> None:
        inner = DataCollatorForLanguageModeling(self.pad_token_id, return_position_ids=True)
        object.__setattr__(self, "inner", inner)

    def __call__(self, packs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = dict(self.inner(packs))
        del batch["attention_mask"]  # a model that is given one does not look at positions
        # what follows a row's last token is another row's first, which nobody is to guess
        batch["labels"][batch["position_ids"] == 0] = IGNORED
        for index, found in enumerate(packs):
            if not found["ids"]:
                batch["labels"][index] = IGNORED
        batch[ROWS] = [found["ids"] for found in packs]
        batch[TOKENS] = [len(found["input_ids"]) for found in packs]
        return batch


@dataclass(frozen=True)
class EitherCollate:
    """Batches of packs by one collator, of single rows by the other."""

    packs: CollatePacks
    rows: Any

    @property
    def inner(self) -> Any:
        return self.rows.inner

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = self.packs(rows) if "ids" in rows[0] else self.rows(rows)
        return found
