"""What a row is. Every dataset of a run has the same lineage columns and one of eight payloads.

A row in Python is a plain dict with these keys; on storage it is Parquet with the declared Arrow schema, so
that an all-null column never changes type between two files.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
RowType = Literal["text", "labelled", "completion", "chat", "preference", "tagged", "qa"]

#: the row type that holds token ids alone, made by stage `pack` and from no source
PACKED = "packed"

#: payload columns of each row type
PAYLOADS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "labelled": ("text", "label"),
    "completion": ("prompt", "completion"),
    "chat": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "tagged": ("tokens", "tags"),
    "qa": ("question", "context", "answers"),
    PACKED: ("input_ids", "labels", "pack"),
}

#: lineage columns, in every dataset
LINEAGE: dict[str, str] = {
    "id": "unique within the dataset; an added row's is PARENT/VIA.N",
    "root": "id of the original row that this one descends from; its own id for an original",
    "parent": "id of the row that this one was made from; null for an original",
    "via": "what made it: the augmenter's name; null for an original",
    "split": "train, validation or test; decided by the root before anything is added",
    "task": "name of the task, where several are mixed",
    "reason": "why the row was dropped, as `name: detail`; null for an accepted row",
    "seed": "seed of the random numbers that made it; null for an original",
    "model": "model or rule set that made it; null for an original",
    "meta": "everything measured or carried along, as JSON: scores, source file and line, other columns",
}
SPLITS = ("train", "validation", "test")

#: A key of rows that were made in the unit at hand, beside those that it was given; never stored.
NEW = "new"
#: A key of rows that a stage only looks at and does not pass on; never stored.
ASIDE = "aside"


def arrow_schema(row_type: str) -> pa.Schema:
    """The declared Arrow schema of a dataset with this payload."""
    import pyarrow as pa

    kinds: dict[str, Any] = {"seed": pa.int64()}
    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds["messages"] = message
    kinds["tokens"] = kinds["tags"] = pa.list_(pa.string())
    kinds["input_ids"] = kinds["labels"] = pa.list_(pa.int32())
    # an answer stands at character `start` of the context
    kinds["answers"] = pa.list_(pa.struct([("text", pa.string()), ("start", pa.int64())]))
    return pa.schema([(name, kinds.get(name, pa.string())) for name in (*LINEAGE, *PAYLOADS[row_type])])


def to_table(rows: Iterable[Row], row_type: str) -> pa.Table:
    """Rows as an Arrow table of the declared schema; `meta` becomes JSON. Missing columns are null."""
    import pyarrow as pa

    rows = list(rows)
    schema = arrow_schema(row_type)
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    columns["meta"] = [json.dumps(meta, ensure_ascii=False) if meta else None for meta in columns["meta"]]
    return pa.Table.from_pydict(columns, schema=schema)


def from_table(table: pa.Table) -> list[Row]:
    """Rows of a table that `to_table` made."""
    rows: list[Row] = table.to_pylist()
    for row in rows:
        row["meta"] = json.loads(row["meta"]) if row["meta"] else {}
    return rows


def value_at(row: Row, path: str) -> Any:
    """What stands in a column, or at a dotted path into `meta`: meta.answer.sku. None where there is nothing."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def original(row_id: str, split: str, payload: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> Row:
    """A row as it came from a source."""
    row: Row = dict.fromkeys(LINEAGE)
    return {**row, "id": row_id, "root": row_id, "split": split, "meta": dict(meta or {}), **payload}


def added(parent: Row, via: str, number: int, seed: int, model: str | None, **changes: Any) -> Row:
    """A new row made from `parent`: same root, split and payload but for `changes`."""
    lineage = {"id": f"{parent['id']}/{via}.{number}", "parent": parent["id"], "via": via}
    return {**parent, **lineage, "seed": seed, "model": model, "reason": None, "meta": {}, NEW: True, **changes}


def generated(row_id: str, via: str, seed: int, model: str | None, payload: Mapping[str, Any]) -> Row:
    """A new row that no row was the pattern of: its own root, for training alone."""
    return {**original(row_id, "train", payload), "via": via, "seed": seed, "model": model, NEW: True}


def row_seed(seed: int, row_id: str, purpose: str) -> int:
    """The seed for one row and one purpose (63 bits): the same in whatever batch, worker or retry it runs."""
    data = f"{seed}\x00{purpose}\x00{row_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


def row_rng(seed: int, row_id: str, purpose: str) -> random.Random:
    """Random numbers that belong to one row, see `row_seed`."""
    return random.Random(row_seed(seed, row_id, purpose))
