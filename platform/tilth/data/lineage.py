"""Where a row came from, what became of it in every stage, and what was made from it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

from tilth.data.dataset import MANIFEST, Dataset
from tilth.data.ledger import is_quarantine
from tilth.data.schema import LINEAGE, Row, from_table
from tilth.errors import StorageError
from tilth.runs import Run

if TYPE_CHECKING:
    import pyarrow.compute as pc

_CLOSE = 2000  # ids that a misspelt one is compared with
_MADE_BY = ("via", "seed", "model")


@dataclass(frozen=True)
class _Held:
    """A dataset of the run, under the name by which people know it."""

    name: str
    dataset: Dataset

    def rows(self, keep: pc.Expression, columns: list[str] | None = None, limit: int | None = None) -> list[Row]:
        """Accepted and dropped rows that the filter keeps; Parquet statistics skip what cannot hold them."""
        source = self.dataset.scan()
        if columns is not None:
            found: list[Row] = source.scanner(columns=columns, filter=keep).head(limit or _CLOSE).to_pylist()
            return found
        return from_table(source.to_table(filter=keep))


def lineage(run: Run, row_id: str) -> dict[str, Any]:
    """What the run's last plan knows of a row, as JSON-ready data.

    id, root, row (payload), parents (nearest first, up to the root), children (each with its fate), and stages:
    for each dataset of the run whether the row was accepted, why it was dropped, or that it is absent.
    `row_id` may be the beginning of an id that no other row shares. StorageError for an unknown id.
    """
    held = list(_held(run))
    found = _resolve(held, row_id)
    seen = {item.name: rows[0] for item in held if (rows := item.rows(_equals("id", found)))}
    row = next(iter(seen.values()))
    return {
        "run": run.store.url,
        **_told(row),
        "root": row["root"],
        "parents": list(_parents(held, row)),
        "children": _children(held, found),
        "stages": [_in_stage(item.name, seen.get(item.name)) for item in held],
    }


def _held(run: Run) -> Iterator[_Held]:
    """Every dataset of the last plan: those of data stages, and the predictions of evaluations."""
    for name, artifact in run.current().items():
        if artifact.store.exists(MANIFEST):
            yield _Held(name, Dataset.open(artifact))
        for model in artifact.store.list("predictions"):
            store = artifact.store.sub(f"predictions/{model}")
            if store.exists(MANIFEST):
                yield _Held(f"{name}: {model}", Dataset.open(store))


def _equals(column: str, value: str) -> pc.Expression:
    import pyarrow.compute as pc

    return pc.field(column) == value


def _matching(held: list[_Held], start: str) -> list[str]:
    """Ids that begin with `start`, sorted; at most `_CLOSE` of each dataset."""
    import pyarrow.compute as pc

    keep = pc.starts_with(pc.field("id"), start)
    return sorted({row["id"] for item in held for row in item.rows(keep, ["id"])})


def _resolve(held: list[_Held], given: str) -> str:
    """The id that is meant: equal to `given`, or the only family of ids that begins with it."""
    if any(item.rows(_equals("id", given), ["id"], 1) for item in held):
        return given
    matching = _matching(held, given) if given else []
    heads = [found for found in matching if not any(found.startswith(f"{other}/") for other in matching)]
    if len(heads) == 1:
        return heads[0]
    if heads:
        more = f" and {len(heads) - 3} more" if len(heads) > 3 else ""
        raise StorageError(f"{given!r} begins several ids: {', '.join(heads[:3])}{more}; give more of it")
    raise StorageError(f"no dataset of this run has a row {given!r}; {_close(held, given)}")


def _close(held: list[_Held], given: str) -> str:
    """Ids like the one given, from those that share as much of its beginning as any does."""
    start = given
    while start and not _matching(held, start):
        start = start[: len(start) // 2]
    known = _matching(held, start)
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.5) or known[:3]
    return f"close ones: {', '.join(close)}" if close else "it has no rows at all"


def _parents(held: list[_Held], row: Row) -> Iterator[dict[str, Any]]:
    while row["parent"] is not None:
        rows = next((rows for item in held if (rows := item.rows(_equals("id", row["parent"])))), None)
        if rows is None:
            yield {"id": row["parent"], "row": {}, "missing": True}
            return
        row = rows[0]
        yield _told(row)


def _children(held: list[_Held], row_id: str) -> list[dict[str, Any]]:
    """Rows made from this one, each once, with the fate that it met last."""
    made: dict[str, dict[str, Any]] = {}
    for item in held:
        for row in item.rows(_equals("parent", row_id)):
            made[row["id"]] = {**_told(row), **_fate(row)}
    return list(made.values())


def _told(row: Row) -> dict[str, Any]:
    payload = {name: value for name, value in row.items() if name not in LINEAGE}
    return {"id": row["id"], "row": payload, **{name: row[name] for name in _MADE_BY if row[name] is not None}}


def _in_stage(name: str, row: Row | None) -> dict[str, Any]:
    if row is None:
        return {"stage": name, "fate": "absent"}
    return {"stage": name, **_fate(row), "split": row["split"], "meta": row["meta"]}


def _fate(row: Row) -> dict[str, Any]:
    if row["reason"] is None:
        return {"fate": "accepted"}
    return {"fate": "quarantined" if is_quarantine(row["reason"]) else "filtered", "reason": row["reason"]}


def lineage_tree(found: dict[str, Any]) -> Tree:
    """What `lineage` found, for a terminal: from the root down to the row, its children and its stages."""
    chain = [*reversed(found["parents"]), found]
    tree = here = Tree(_line(chain[0]))
    for item in chain[1:]:
        here = here.add(_line(item))
    for child in found["children"]:
        here.add(_line(child, _word(child)))
    stages = tree.add("[bold]in each dataset[/]")
    for stage in found["stages"]:
        node = stages.add(f"{escape(stage['stage'])}: {escape(_word(stage))}")
        for name, value in stage.get("meta", {}).items():
            node.add(f"[dim]{escape(f'{name}: {value}')}[/]")
    return tree


def _line(item: dict[str, Any], more: str = "") -> Text:
    """Id and maker, and below them the row's text, folded rather than cut at the terminal's edge."""
    made = ", ".join(f"{name} {item[name]}" for name in _MADE_BY if name in item)
    text = " | ".join(str(value) for value in item["row"].values() if value is not None) or "not kept"
    about = "; ".join(part for part in (made, more) if part)
    shown = Text(item["id"], "bold", no_wrap=False, overflow="fold")
    return shown.append(f"  {about}" if about else "", "dim").append(f"\n{text}", "not bold")


def _word(item: dict[str, Any]) -> str:
    return f"dropped, {item['reason']}" if "reason" in item else str(item["fate"])
