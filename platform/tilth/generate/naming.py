"""No id twice: a stage may start from what the same method has made, and makes ids that are not there yet.

self_instruct-000.00007.2 in the data  →  the stage's own are self_instruct~2-000.00007.2
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING

from tilth.data.schema import Row
from tilth.errors import StageError

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset


def series(via: str, source: Dataset) -> str:
    """What the ids of a pool method's asks begin with: its name, or via~2, via~3, … where the data has the former."""
    form = re.compile(rf"({re.escape(via)}(?:~\d+)?)-\d+\.\d+\.")
    taken = {found[1] for row_id in _ids(source) if (found := form.match(row_id))}
    names = (via if number == 1 else f"{via}~{number}" for number in count(1))
    return next(name for name in names if name not in taken)


def in_series(asks: Iterable[Row], via: str, name: str) -> list[Row]:
    """The asks with ids of that series."""
    return [{**ask, "id": name + ask["id"].removeprefix(via)} for ask in asks]


def refuse_again(via: str, source: Dataset, data: str) -> None:
    """StageError where a row that is asked about has children by this name already, whose ids would come again."""
    columns = ["id", "via", "parent"]
    rows = (row for table in source.tables(columns) for row in table.to_pylist())
    parents = {row["parent"] for row in rows if row["via"] == via}
    if parents and any(row_id in parents for row_id in _ids(source)):
        raise StageError(
            f"{data} already holds rows by {via!r} beside those that they were made from, and their ids would be made "
            "again; set the name of this method to another"
        )


def _ids(source: Dataset) -> Iterator[str]:
    for table in source.tables(["id"]):
        yield from table["id"].to_pylist()
