"""Files as streams of records: what cannot be read is a `Bad` with its place and reason, never an exception.

Memory stays bounded by `limit` bytes, whatever a line holds: an oversized record is skipped in small steps.
Nothing heavy is imported here, so that a recipe's columns can be checked without waiting.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from tilth.data.files import packed

EXCERPT = 200
_STEP = 1 << 16
PART = 16 << 20
# what decompressors raise in the middle of a damaged stream; what a store raises is StorageError, see `opened`
BROKEN = (EOFError, OSError, zlib.error)


@dataclass(frozen=True)
class Record:
    """One record: `line` is its first line (1-based) in a text file, its row number (1-based) in a table."""

    line: int
    value: Mapping[str, Any]


@dataclass(frozen=True)
class Bad:
    """A record, or a file from `line` on, that could not be read; `reason` is `name: detail`."""

    line: int
    reason: str
    excerpt: str = ""


@dataclass(frozen=True)
class _Oversized:
    """A physical line longer than the limit: how it begins and its length in bytes."""

    head: bytes
    size: int


Item = Record | Bad


def decompressed(handle: IO[bytes], name: str) -> IO[bytes]:
    """The content of a file by its suffix: .gz, .bz2, .zst, anything else as it is."""
    match packed(name):
        case "gz":
            return io.BufferedReader(gzip.GzipFile(fileobj=handle))
        case "bz2":
            return io.BufferedReader(bz2.BZ2File(handle))
        case "zst":
            import pyarrow as pa

            return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(handle, mode="r"), "zstd"))
    # files of fsspec read whole lines only, however long
    return handle if isinstance(handle, io.BufferedIOBase) else io.BufferedReader(handle)  # type: ignore[type-var]


def damage(error: Exception) -> str:
    """What is wrong with a file; raises the error of a local disk, which has a number, for that is no damage of it."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return str(error) or type(error).__name__


def excerpt(data: bytes) -> str:
    """The first characters of raw bytes, printable and safe to store."""
    text = data[: 4 * EXCERPT].decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "�" for char in text.strip())[:EXCERPT]


def cut_lines(file: str) -> list[tuple[int, int | None, int]]:
    """(start, stop, first line) of parts of a large local plain file, cut at line ends; else the file whole."""
    if "://" in file or packed(file) or Path(file).stat().st_size <= PART:
        return [(0, None, 1)]
    parts: list[tuple[int, int | None, int]] = []
    start = at = 0
    first = line = 1
    with open(file, "rb") as handle:
        while data := handle.read(_STEP):
            end = data.rfind(b"\n") + 1
            if end and at + end - start >= PART:
                parts.append((start, at + end, first))
                start, first = at + end, line + data.count(b"\n")
            line += data.count(b"\n")
            at += len(data)
    return [*parts, (start, None, first)] if at > start else parts


def read_jsonl(handle: IO[bytes], limit: int, first_line: int = 1, stop: int | None = None) -> Iterator[Item]:
    """JSON Lines: one object a line. Blank lines are no records; a leading byte order mark is skipped.

    `handle` stands at the start of `first_line`; lines that begin at byte `stop` or after are not read.
    """
    for line, data in _lines(handle, limit, first_line, stop):
        if isinstance(data, Bad):
            yield data
        elif isinstance(data, _Oversized):
            yield too_large(line, data.head, data.size, limit)
        elif data.strip():
            yield json_record(line, data)


def json_record(line: int, data: bytes) -> Item:
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _not_utf8(line, data, error)
    except RecursionError:
        return Bad(line, "malformed_json: nested too deeply", excerpt(data))
    except json.JSONDecodeError as error:
        return Bad(line, f"malformed_json: {error.msg} at column {error.colno}", excerpt(data))
    except ValueError as error:
        return Bad(line, f"malformed_json: {error}", excerpt(data))
    if not isinstance(value, dict):
        what = "an array; convert the file to one object a line" if isinstance(value, list) else type(value).__name__
        return Bad(line, f"not_an_object: the line holds {what}", excerpt(data))
    return Record(line, value)


def read_csv(handle: IO[bytes], limit: int, delimiter: str = ",") -> Iterator[Item]:
    """CSV with a header (RFC 4180): quoted fields may span lines.

    After a broken quote only the line where the record began is lost: reading resumes at the next line.
    """
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    feed = _Feed(_lines(handle, limit, 1), limit)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while (item := _csv_fields(feed, reader)) is not None:
        if header is None:
            if problem := _header_problem(item):
                yield problem
                return
            header = item if isinstance(item, list) else []
        elif isinstance(item, Bad):
            yield item
        elif len(item) != len(header):
            reason = f"wrong_fields: {len(item)} where the header has {len(header)}"
            yield Bad(feed.first, reason, excerpt(b"".join(data for _, data in feed.taken)))
        else:
            yield Record(feed.first, dict(zip(header, item, strict=True)))
    if feed.failure is not None:
        yield feed.failure


def _csv_fields(feed: _Feed, reader: Iterator[list[str]]) -> list[str] | Bad | None:
    """The fields of the next record that is not blank, or what is wrong with it; None at the end."""
    fields: list[str] = []
    while not fields:
        feed.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return None
        except _Broken as error:
            return error.bad
        except csv.Error as error:
            return feed.recover(f"malformed_csv: {error}")
    return fields


def _header_problem(item: list[str] | Bad) -> Bad | None:
    """Without its header the rest of a file means nothing."""
    if isinstance(item, Bad):
        return Bad(item.line, f"broken_header: {item.reason}", item.excerpt)
    twice = sorted({name for name in item if item.count(name) > 1})
    return Bad(1, f"broken_header: {', '.join(twice)} named twice") if twice else None


class _Broken(Exception):  # noqa: N818 - carries a finding out of csv.reader, it is not an error of ours
    def __init__(self, bad: Bad) -> None:
        super().__init__(bad.reason)
        self.bad = bad


class _Feed:
    """Decoded lines for csv.reader, which remembers those of the current record so that they can be read again."""

    def __init__(self, lines: Iterator[tuple[int, bytes | _Oversized | Bad]], limit: int) -> None:
        self.lines, self.limit = lines, limit
        self.again: deque[tuple[int, bytes | _Oversized]] = deque()
        self.taken: list[tuple[int, bytes]] = []
        self.size = 0
        self.failure: Bad | None = None

    @property
    def first(self) -> int:
        return self.taken[0][0]

    def begin(self) -> None:
        self.taken, self.size = [], 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line, data = self._next()
        if isinstance(data, _Oversized):
            self._give_up(line, data, too_large(line, data.head, data.size, self.limit))
        else:
            self.size += len(data)
            if self.size > self.limit:
                self._give_up(line, data, Bad(line, f"oversized: a record over max_record_bytes={self.limit}"))
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                self._give_up(line, data, _not_utf8(line, data, error))
            self.taken.append((line, data))
        return text

    def _next(self) -> tuple[int, bytes | _Oversized]:
        if self.again:
            return self.again.popleft()
        if self.failure is not None:
            raise StopIteration
        line, data = next(self.lines)
        if isinstance(data, Bad):
            self.failure = data
            raise StopIteration
        return line, data

    def _give_up(self, line: int, data: bytes | _Oversized, bad: Bad) -> NoReturn:
        """End the current record at a line that cannot belong to it; that line is judged again on its own."""
        if not self.taken:
            raise _Broken(bad)
        self.again.appendleft((line, data))
        raise _Broken(self.recover(f"malformed_csv: a quote opens here and is still open at line {line}"))

    def recover(self, reason: str) -> Bad:
        """The first line of the current record as bad; its other lines are read again."""
        line, data = self.taken[0]
        self.again.extendleft(reversed(self.taken[1:]))
        return Bad(line, reason, excerpt(data))


def _lines(
    handle: IO[bytes], limit: int, first: int, stop: int | None = None
) -> Iterator[tuple[int, bytes | _Oversized | Bad]]:
    """Physical lines with their numbers; never holds more than `limit` bytes. A broken stream ends in a Bad."""
    line = first
    try:
        data = handle.readline(limit + 1)
        if not data and first == 1:
            yield 0, Bad(0, "empty_file: it has no bytes")
        data = data.removeprefix(b"\xef\xbb\xbf") if first == 1 else data
        while data:
            long = len(data) > limit
            yield line, _Oversized(data[:EXCERPT], len(data) + _skip(handle, data)) if long else data
            line += 1
            data = handle.readline(limit + 1) if stop is None or handle.tell() < stop else b""
    except BROKEN as error:
        yield line, Bad(line, f"broken_file: {damage(error)}")


def _skip(handle: IO[bytes], data: bytes) -> int:
    """Read on to the end of the line, in small steps; how many bytes that was."""
    skipped = 0
    while data and not data.endswith(b"\n"):
        data = handle.readline(_STEP)
        skipped += len(data)
    return skipped


def too_large(line: int, head: bytes, size: int, limit: int) -> Bad:
    return Bad(line, f"oversized: {size} bytes, over max_record_bytes={limit}", excerpt(head))


def _not_utf8(line: int, data: bytes, error: UnicodeDecodeError) -> Bad:
    return Bad(line, f"invalid_utf8: byte 0x{data[error.start]:02x} at {error.start}", excerpt(data))
