"""Rows on which a function raises: found, quarantined with the error, and kept from costing their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from tilth.data.schema import Row
from tilth.data.transform import RowsFunction
from tilth.errors import StageError, TilthError

#: share of a unit's rows that may raise before the fault is taken to be the function's, not the rows'
POISON_SHARE = 0.25


def _quarantined(row: Row, why: str) -> Row:
    return {**row, "reason": why}


def guarded(function: RowsFunction, rows: list[Row], failed_as: Callable[[Row, str], Row] = _quarantined) -> list[Row]:
    """Apply `function`; rows on which it raises are found by halving and quarantined with the error.

    `failed_as` gives the row that stands for one that raised; by default itself.

    When more than a quarter of the rows raise, the fault is not theirs: the first error ends the stage.
    """
    allowed = max(1, int(len(rows) * POISON_SHARE))
    failed: list[Row] = []

    def attempt(part: list[Row]) -> list[Row]:
        try:
            return function([{**row, "meta": dict(row["meta"])} for row in part])
        except TilthError:
            raise
        except Exception as error:
            if len(part) > 1:
                middle = len(part) // 2
                return attempt(part[:middle]) + attempt(part[middle:])
            failed.append(part[0])
            if len(failed) > allowed or _is_resource(error):
                raise StageError(f"{type(error).__name__}: {error} (at row {part[0]['id']})") from error
            return [failed_as(part[0], f"quarantined/{type(error).__name__}: {error}")]

    return attempt(rows)


def _is_resource(error: BaseException) -> bool:
    """Out of memory or disk: not a fault of the row."""
    return isinstance(error, MemoryError | OSError) or type(error).__name__ == "OutOfMemoryError"


def one_by_one(function: RowsFunction, rows: list[Row]) -> list[Row]:
    """Apply a step's `function` as `guarded` does; a row that is looked for sees its parents beside it all the same."""
    everyone = {row["id"]: row for row in rows}

    def attempt(part: list[Row]) -> list[Row]:
        own = {row["id"] for row in part}
        beside = {row["parent"] for row in part} & everyone.keys() - own
        if not beside:
            return function(part)
        parents = [{**everyone[name], "meta": dict(everyone[name]["meta"])} for name in everyone if name in beside]
        return [row for row in function([*parents, *part]) if row["id"] in own or _new(row, everyone, own)]

    return guarded(attempt, rows)


def _new(row: Row, everyone: Mapping[str, Row], own: Collection[str]) -> bool:
    """Whether a row is made, and of none that only stands beside."""
    return row["id"] not in everyone and (row["parent"] in own or row["parent"] not in everyone)
