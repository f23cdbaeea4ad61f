"""The text of a column, whatever the column holds: a text, the turns of a conversation, words or answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilth.data.clean import map_texts, said
from tilth.data.schema import PACKED, PAYLOADS, Row
from tilth.errors import StageError

#: columns that hold no running text
_NAMES = frozenset({"label", "tags"})


def text_of(row: Row, field: str) -> str:
    """The text in column `field`; of `messages`, what each turn says, line by line. StageError where there is none."""
    text = _text(row.get(field))
    if text is None:
        raise StageError(f"row {row['id']!r} has no text in column {field!r}; set `field`")
    return text


def text_or_none(row: Row | None, field: str) -> str | None:
    """The same, None where there is no such row or no such text."""
    return None if row is None else _text(row.get(field))


def refuse_encoded(row_type: str, name: str, where: str) -> None:
    """StageError for rows of token ids, which `whole_text` cannot read."""
    if row_type == PACKED:
        raise StageError(
            f"{where} is read as text, but {name} holds {row_type} rows, which are token ids; name the dataset that "
            "it was packed from"
        )


def whole_text(row: Row) -> str:
    """All that a row says, column after column, whatever its type but `packed`: see `refuse_encoded`."""
    columns = dict.fromkeys(name for names in PAYLOADS.values() for name in names if name not in _NAMES)
    texts = (_text(row.get(name)) for name in columns)
    return "\n".join(text for text in texts if text is not None)


def parts_of(row: Row, field: str) -> list[str]:
    """The texts that column `field` consists of: one, or what each turn says."""
    value = row[field]
    return [value] if isinstance(value, str) else [said(item) for item in value]


def rewritten(row: Row, field: str, change: Callable[[str], str]) -> dict[str, Any]:
    """The payload column `field` with `change` applied to its text, or to what each turn says."""
    return {field: map_texts(row[field], change)}


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    words = all(isinstance(item, str) for item in value)
    return (" " if words else "\n").join(map(said, value))
