"""What stage `data` holds of each accepted row while it decides over all of them: hashes and codes, no text.

A row is known by its number: how many rows were accepted before it, in the order of reading. With the tallies of
the units that says where it lies, so that nothing needs to be looked up by its id.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tilth.data.clean import map_texts
from tilth.data.dedup import normalise
from tilth.data.ingest import MARK
from tilth.data.schema import PAYLOADS, SPLITS

if TYPE_CHECKING:
    from tilth.data.ledger import Ledger

BATCH = 4096
#: the id of an added row, see `schema.added`
MADE = re.compile(r"(.+)/[^/]+\.\d+")
#: the id of a row whose own was taken; a longer number is never reached
_NUMBERED = re.compile(r"(.+)~([2-9]|[1-9][0-9]{1,17})", re.DOTALL)
#: row number `row` has an id that speaks of the one whose hash is `of`
LINK = np.dtype([("row", np.int64), ("of", "S16"), ("number", np.int64)])

_hash = partial(hashlib.blake2b, digest_size=16)

#: from the ids of some rows to something drawn for each
Lot = Callable[[Sequence[str]], NDArray[Any]]


class Keys(NamedTuple):
    """What rows are compared by: 32 bytes for each, and 32 for each link."""

    #: BLAKE2b of the id, and of what a model is given; numpy compares all 16 bytes
    names: NDArray[np.bytes_]
    contents: NDArray[np.bytes_]
    #: rows called PARENT/VIA.N, of PARENT
    made: NDArray[np.void]
    #: rows called NAME~NUMBER/VIA.N, and rows called NAME~NUMBER, of NAME
    renamed: NDArray[np.void]
    numbered: NDArray[np.void]


class Traits(NamedTuple):
    """What rows are drawn by: 5 bytes for each, what each lot says of it, and every distinct label once."""

    #: int8, the index in `SPLITS` of the split that the source has, -1 where it has none
    splits: NDArray[np.int8]
    #: int32, the index in `label_names`, -1 for none
    labels: NDArray[np.int32]
    label_names: list[str]
    lots: dict[str, NDArray[Any]]


def see(ledger: Ledger, row_type: str, normalized: bool, lots: Mapping[str, Lot]) -> tuple[Keys, Traits]:
    """Read every accepted row once, a table of the ledger in memory at a time."""
    texts = [name for name in PAYLOADS[row_type] if name != "label"]
    columns = ["id", "split", "task", *PAYLOADS[row_type]]
    count = ledger.tally().accepted
    names, contents = np.empty(count, "S16"), np.empty(count, "S16")
    splits, labels = np.full(count, -1, np.int8), np.full(count, -1, np.int32)
    drawn = {name: np.empty(count, lot([]).dtype) for name, lot in lots.items()}
    known: dict[str, int] = {}
    links = [_links([], 0)]
    for start, batch in accepted(ledger, columns):
        rows = slice(start, start + batch.num_rows)
        ids = unmarked(batch["id"]).to_pylist()
        names[rows] = _hashed(ids)
        contents[rows] = _hashed(_contents(batch, texts, normalized))
        splits[rows] = pc.index_in(batch["split"], pa.array(SPLITS)).fill_null(-1)
        if "label" in columns:
            labels[rows] = _coded(batch["label"], known)
        for name, lot in lots.items():
            drawn[name][rows] = lot(ids)
        links.append(_links(ids, start))
    made, renamed, numbered = map(np.concatenate, zip(*links, strict=True))
    return Keys(names, contents, made, renamed, numbered), Traits(splits, labels, list(known), drawn)


def accepted(ledger: Ledger, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows that the units kept, in batches, each with the number of its first row."""
    start = 0
    for table in ledger.tables(["reason", *columns]):
        kept = table.filter(pc.is_null(table["reason"])).select(columns)
        for batch in kept.to_batches(BATCH):
            yield start, batch
            start += batch.num_rows


def marked_ids(ledger: Ledger, rows: NDArray[np.int64]) -> pa.LargeStringArray:
    """The ids of these rows as the units have them; `rows` ascend. Reads the units again if there are any."""
    found = []
    for start, batch in accepted(ledger, ["id"]) if len(rows) else ():
        low, high = np.searchsorted(rows, [start, start + batch.num_rows])
        if low < high:
            found.append(batch["id"].take(pa.array(rows[low:high] - start)).cast(pa.large_string()))
    return pa.concat_arrays(found) if found else pa.array([], pa.large_string())


def unmarked(ids: Any) -> Any:
    """A column of ids without the mark of their place."""
    return pc.replace_substring_regex(ids, rf"{MARK}[0-9]+\.[0-9]+$", "")


def _hashed(texts: Iterable[str]) -> NDArray[np.bytes_]:
    return np.array([_hash(text.encode()).digest() for text in texts], "S16")


def _contents(batch: pa.RecordBatch, texts: Sequence[str], normalized: bool) -> Iterator[str]:
    """What a model is given of each row, as one text; `repr` tells apart whatever differs."""
    given = [batch[name].to_pylist() for name in texts]
    if normalized:
        given = [[map_texts(value, _folded) for value in column] for column in given]
    return map(repr, zip(batch["task"].to_pylist(), *given, strict=True))


def _folded(text: str) -> str:
    return normalise(text) or text  # of marks alone nothing would be left


def _coded(labels: pa.Array, known: dict[str, int]) -> NDArray[np.int32]:
    """The code of each label; `known` grows."""
    coded = labels.dictionary_encode()
    codes = [known.setdefault(label, len(known)) for label in coded.dictionary.to_pylist()]
    found: NDArray[np.int32] = np.array([*codes, -1], np.int32)[coded.indices.fill_null(-1)]
    return found


def _links(ids: Sequence[str], start: int) -> tuple[NDArray[np.void], ...]:
    """Made, renamed and numbered rows among these, see `Keys`."""
    made, renamed, numbered = [], [], []
    for row, name in enumerate(ids, start):
        if "/" in name and (found := MADE.fullmatch(name)):
            made.append((row, _hash(found[1].encode()).digest(), 0))
            if parent := _NUMBERED.fullmatch(found[1]):
                renamed.append((row, _hash(parent[1].encode()).digest(), int(parent[2])))
        if "~" in name and (found := _NUMBERED.fullmatch(name)):
            numbered.append((row, _hash(found[1].encode()).digest(), int(found[2])))
    return tuple(np.array(links, LINK) for links in (made, renamed, numbered))
