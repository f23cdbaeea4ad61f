"""Rows that are written in a recipe: what they may hold, and their lists, which a frozen config keeps as tuples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import PydanticCustomError


def all_plain(rows: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """The rows, if JSON could hold them: YAML's tags make dates, sets and bytes, which no file of rows has."""
    for index, row in enumerate(rows):
        for odd in _odd(row):
            rule = "row {row}: a value must be text, a finite number, true, false, null, a list or a mapping, not {odd}"
            raise PydanticCustomError("plain", rule, {"row": index, "odd": repr(odd)[:80]})
    return rows


def _odd(value: Any) -> Iterator[Any]:
    """Every key and value that is not plain."""
    if isinstance(value, Mapping):
        yield from (key for key in value if not isinstance(key, str))
        yield from _odd(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _odd(item)
    elif not (value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))):
        yield value


def thawed(value: Any) -> Any:
    """Tuples of a frozen config as lists again."""
    if isinstance(value, tuple):
        return [thawed(item) for item in value]
    if isinstance(value, dict):
        return {key: thawed(item) for key, item in value.items()}
    return value
