"""What a report counts and quotes from a dataset, read column by column."""

from __future__ import annotations

import difflib
import hashlib
import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilth.data.dataset import Dataset
from tilth.data.schema import PAYLOADS, Row, from_table
from tilth.report.figures import ACCEPTED, Flow

ORIGINALS = "originals"
#: examples of each augmenter, and of each reason to drop a row
_KEPT, _DROPPED = 4, 2
_QUOTED = 1200  # characters of a text that the report shows

Words = list[tuple[str, str]]


@dataclass(frozen=True)
class Example:
    """An added row beside the row that it was made from, word by word: ("same" | "gone" | "new", words)."""

    id: str
    via: str
    parent: Words
    child: Words
    label: str | None
    reason: str | None
    facts: dict[str, Any]


def flows(dataset: Dataset) -> list[Flow]:
    """Rows by what made them and by what became of them: accepted, or dropped for a reason (without its detail)."""
    import pyarrow.compute as pc

    found: Counter[tuple[str, str]] = Counter()
    for batch in dataset.scan().to_batches(columns=["via", "reason"]):
        via = pc.fill_null(batch["via"], ORIGINALS)
        fate = pc.fill_null(pc.replace_substring_regex(batch["reason"], r"(?s):.*", ""), ACCEPTED)
        found.update(_pairs(via, fate))
    order = sorted(found, key=lambda pair: (pair[0] != ORIGINALS, pair[0], pair[1] != ACCEPTED, -found[pair]))
    return [(*pair, found[pair]) for pair in order]


def _pairs(left: Any, right: Any) -> dict[tuple[Any, Any], int]:
    """How often each pair of values stands in two columns, in the order in which they first do."""
    import pyarrow as pa

    counted = pa.table({"left": left, "right": right}).group_by(["left", "right"], use_threads=False)
    columns = counted.aggregate([([], "count_all")]).to_pydict()
    return dict(zip(zip(columns["left"], columns["right"], strict=True), columns["count_all"], strict=True))


def label_counts(dataset: Dataset) -> tuple[dict[str, int], dict[str, int]]:
    """Accepted training rows by label: among the originals, and in all. Empty where rows carry no label."""
    import pyarrow.compute as pc

    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    if "label" in PAYLOADS[dataset.row_type]:
        for table in dataset.split("train").tables(["via", "label"]):
            for (original, label), rows in _pairs(pc.is_null(table["via"]), table["label"]).items():
                if label is not None:
                    after[label] += rows
                    before[label] += rows * original
    return dict(before), dict(after)


def examples(dataset: Dataset) -> list[Example]:
    """Added rows, some of each augmenter and some of each reason; the same ones for the same data."""
    picked = _picked(dataset)
    rows = _by_id(dataset, picked)
    parents = _by_id(dataset, [row["parent"] for row in rows.values()])
    found = [_example(rows[name], parents[rows[name]["parent"]]) for name in picked if rows[name]["parent"] in parents]
    return sorted(found, key=lambda item: (item.via, item.reason is not None, item.reason or "", item.id))


def _picked(dataset: Dataset) -> list[str]:
    """Ids whose hash is lowest in each group: a sample that does not depend on the order of rows."""
    import pyarrow.compute as pc

    added = pc.field("parent").is_valid()
    table = dataset.scan().to_table(columns=["id", "via", "reason"], filter=added)
    groups: dict[tuple[str, str | None], list[str]] = {}
    for row_id, via, reason in zip(*(column.to_pylist() for column in table.columns), strict=True):
        groups.setdefault((via, reason.partition(":")[0] if reason else None), []).append(row_id)
    return [
        row_id
        for (_, reason), ids in groups.items()
        for row_id in heapq.nsmallest(_DROPPED if reason else _KEPT, ids, key=_hashed)
    ]


def _hashed(row_id: str) -> bytes:
    return hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _by_id(dataset: Dataset, ids: Sequence[str]) -> dict[str, Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pc.field("id").isin(pa.array(ids, pa.string()))
    return {row["id"]: row for row in from_table(dataset.scan().to_table(filter=wanted))}


def _example(row: Row, parent: Row) -> Example:
    old, new = (shown_text(item)[:_QUOTED] for item in (parent, row))
    return Example(row["id"], row["via"], *word_diff(old, new), row.get("label"), row["reason"], row["meta"])


def shown_text(row: Row) -> str:
    """The text of any row: its columns, or the turns of its conversation, one after the other; words with tags."""
    if row.get("messages"):
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"])
    if row.get("tokens"):
        return " ".join(f"{word}/{tag}" for word, tag in zip(row["tokens"], row["tags"], strict=True))
    columns = ("text", "prompt", "completion", "chosen", "rejected", "question", "context")
    return "\n".join(row[name] for name in columns if row.get(name) is not None)


def word_diff(old: str, new: str) -> tuple[Words, Words]:
    """Both texts in runs of words, marked where the other lacks them."""
    left, right = old.split(), new.split()
    marked: tuple[Words, Words] = ([], [])
    for kind, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for words, out, mark in ((left[a:b], marked[0], "gone"), (right[c:d], marked[1], "new")):
            if words:
                out.append(("same" if kind == "equal" else mark, " ".join(words)))
    return marked


def confused(counts: Sequence[Sequence[int]], labels: Sequence[str], most: int = 10) -> list[tuple[str, str, int]]:
    """The pairs (true, predicted, rows) that a classifier mixes up most."""
    wrong = [
        (labels[i], labels[j], number)
        for i, row in enumerate(counts)
        for j, number in enumerate(row)
        if i != j and number
    ]
    return sorted(wrong, key=lambda item: (-item[2], item[0], item[1]))[:most]
