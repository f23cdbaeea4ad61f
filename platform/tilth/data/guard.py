"""Rows on which a function raises: found, quarantined with the error, and kept from costing their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tilth.data.schema import Row
from tilth.data.transform import RowsFunction
from tilth.errors import StageError, TilthError

#: share of a unit's rows that may raise before the fault is taken to be the function's, not the rows'
POISON_SHARE = 0.25


def _quarantined(row: Row, why: str) -> Row:
    return {**row, "reason": why}


def guarded(function: RowsFunction, rows: list[Row], failed_as: Callable[[Row, str], Row] = _quarantined) -> list[Row]:
    """Apply `function`; rows on which it raises are found by halving and quarantined with the error.

    `failed_as` gives the row that stands for one that raised; by default itself. One that has a reason keeps it.

    When of more than a quarter of the rows that they come from some raise, the fault is not theirs: the first error
    ends the stage.
    """
    origins = _origins(rows)
    allowed = max(1, int(len(set(origins.values())) * POISON_SHARE))
    failed: set[str] = set()

    def attempt(part: list[Row]) -> list[Row]:
        try:
            return function([{**row, "meta": dict(row["meta"])} for row in part])
        except TilthError:
            raise
        except Exception as error:
            if len(part) > 1:
                middle = len(part) // 2
                return attempt(part[:middle]) + attempt(part[middle:])
            (row,) = part
            if row["reason"] is None:
                failed.add(origins[row["id"]])
            if len(failed) > allowed or _is_resource(error):
                raise StageError(f"{type(error).__name__}: {error} (at row {row['id']})") from error
            return [row if row["reason"] else failed_as(row, f"quarantined/{type(error).__name__}: {error}")]

    return attempt(rows)


def _origins(rows: Iterable[Row]) -> dict[str, str]:
    """For each row the one of these that it descends from, itself where it descends from none."""
    parents = {row["id"]: row["parent"] for row in rows}

    def top(name: str) -> str:
        seen = {name}
        while (above := parents[name]) in parents and above not in seen:
            seen.add(name := above)
        return name

    return {name: top(name) for name in parents}


def _is_resource(error: BaseException) -> bool:
    """Out of memory or disk: not a fault of the row."""
    return isinstance(error, MemoryError | OSError) or type(error).__name__ == "OutOfMemoryError"


def beside_parents(function: RowsFunction, rows: list[Row]) -> list[Row]:
    """The same for a step that compares rows with their parents: one that is looked for sees them all the same."""
    everyone = {row["id"]: row for row in rows}

    def attempt(part: list[Row]) -> list[Row]:
        own = {row["id"] for row in part}
        beside = {row["parent"] for row in part} & everyone.keys() - own
        parents = [{**everyone[name], "meta": dict(everyone[name]["meta"])} for name in everyone if name in beside]
        return [row for row in function([*parents, *part]) if row["id"] not in beside]

    return guarded(attempt, rows)
