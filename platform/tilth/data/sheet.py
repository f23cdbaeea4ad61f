"""Sheets that people fill in: a source whose every cell has to keep its rules.

question,answer,category,author
"Where is my card?","It was sent on Monday.",card_arrival,ada
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tilth.config import Component
from tilth.data.dedup import normalise, words
from tilth.data.source import FIRST_PIECES, FIRST_RECORDS, Csv, Piece
from tilth.errors import Problem

if TYPE_CHECKING:
    from tilth.data.readers import Item

_LINES = ("jsonl", "ndjson", "json")
_WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")


class Cell(Component):
    """The rules for one column."""

    required: bool = Field(True, description="It must be filled in.")
    choices: tuple[str, ...] = Field((), description="What may stand there; none: anything.")
    min_words: int = Field(0, ge=0, description="Fewest words; characters in scripts without spaces.")
    max_words: int | None = Field(None, ge=1, description="Most words.")
    unique: bool = Field(False, description="No other row of the file may say the same; case and marks do not count.")

    def check(self) -> list[Problem]:
        if self.max_words is None or self.min_words <= self.max_words:
            return []
        return [Problem("min_words", f"must not be above max_words: {self.min_words} and {self.max_words}")]

    def fault(self, name: str, text: str) -> str | None:
        """What is wrong with a cell, as `name: detail`."""
        if not text:
            return f"empty: {name}" if self.required else None
        if self.choices and text not in self.choices:
            return f"not_allowed: {name} is {text[:80]!r}, not one of {', '.join(self.choices)}"
        count = len(words(text))
        if count < self.min_words:
            return f"too_short: {name} has {count} words, {self.min_words} are wanted"
        if self.max_words is not None and count > self.max_words:
            return f"too_long: {name} has {count} words, {self.max_words} are allowed"
        return None


class Sheet(Csv):
    """A CSV or, by its suffix, JSONL file written by hand. A row with a fault is quarantined with its file and line.

    The reason names the first fault and tells all of them. Rows in which nothing is filled in are none. The author
    is kept in each row's meta. Repeated rows across several files are found by the stage's `clean.duplicates`.
    """

    author: str = Field("author", description="The column that says who wrote the row; it must be filled in.")
    cells: dict[str, Cell] = Field(default_factory=dict, description="Column of the sheet: its rules.")

    @property
    def carried(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.author, *self.carry)))

    def check(self) -> list[Problem]:
        if self.path.lower().endswith(_WORKBOOKS):
            return [Problem("path", "is a workbook, not a table in text", "save it as CSV in UTF-8")]
        problems = super().check()
        found = None if any(problem.where == "path" for problem in problems) else self.peek()
        for where, name in (("author", self.author), *((f"cells.{name}", name) for name in self.cells)):
            problems += [Problem(where, item.what, item.mend) for item in self.column_problems(found, {name: name})]
        return problems

    def column_problems(self, found: list[str] | None, wanted: Mapping[str, str]) -> list[Problem]:
        """The same, with a word on the delimiter where the header was not parted: spreadsheets write several."""
        problems = super().column_problems(found, wanted)
        if found is None or len(found) != 1 or (mark := next((c for c in ";\t|," if c in found[0]), None)) is None:
            return problems
        mend = f"the header is one column, {found[0][:80]!r}: set delimiter to {mark!r}"
        return [Problem(problem.where, problem.what, mend) for problem in problems]

    def first_columns(self) -> list[str] | None:
        """The columns as they stand in the files, also where every row has a fault."""
        from tilth.data.readers import Record

        for piece in self.first_pieces()[:FIRST_PIECES]:
            items = islice(self._read(piece), FIRST_RECORDS)
            if found := [name for item in items if isinstance(item, Record) for name in item.value]:
                return list(dict.fromkeys(found))
        return None

    def records(self, piece: Piece) -> Iterator[Item]:
        from tilth.data.readers import Bad, excerpt

        seen: dict[tuple[str, str], int] = {}
        for item in self._read(piece):
            if isinstance(item, Bad) or not any(map(_text, item.value.values())):
                yield from (item,) if isinstance(item, Bad) else ()
                continue
            faults = [*self._faults(item.value), *self._repeated(item.value, item.line, seen)]
            begin = excerpt(json.dumps(item.value, ensure_ascii=False, default=str).encode("utf-8", "replace"))
            yield Bad(item.line, "; ".join(faults), begin) if faults else item

    def _read(self, piece: Piece) -> Iterator[Item]:
        if not set(piece.name.lower().split(".")[1:]) & set(_LINES):
            yield from super().records(piece)
            return
        from tilth.data.files import opened
        from tilth.data.readers import decompressed, read_jsonl

        with opened(piece.file) as handle:
            yield from read_jsonl(decompressed(handle, piece.file), self.max_record_bytes)

    def _faults(self, record: Mapping[str, Any]) -> Iterator[str]:
        for name, cell in {self.author: Cell(), **self.cells}.items():
            if fault := cell.fault(name, _text(record.get(name))):
                yield fault

    def _repeated(self, record: Mapping[str, Any], line: int, seen: dict[tuple[str, str], int]) -> Iterator[str]:
        for name, cell in self.cells.items():
            text = _text(record.get(name))
            key = (name, normalise(text) or text)
            if cell.unique and text and (first := seen.setdefault(key, line)) != line:
                yield f"duplicate: {name} says the same as line {first}"


def _text(value: Any) -> str:
    """A cell as text; a conversation or list as it would be written in JSON."""
    if value is None or isinstance(value, str):
        return (value or "").strip()
    return json.dumps(value, ensure_ascii=False, default=str) if value not in ([], {}) else ""
