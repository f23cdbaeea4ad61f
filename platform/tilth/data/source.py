"""Sources: where raw rows come from, as light configs. The reading itself is in `tilth.data.readers` and `tables`."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from tilth.config import Component, DataFiles, DataPath
from tilth.data.files import count_lines, opened, packed
from tilth.data.plain import all_plain, thawed
from tilth.data.saved import features, split_folder, unsaved
from tilth.errors import Problem, StorageError
from tilth.paths import local_files, no_match, remote_files

if TYPE_CHECKING:
    from tilth.data.readers import Item

#: how much of a source is looked at for its columns
FIRST_PIECES, FIRST_RECORDS = 5, 100


@dataclass(frozen=True)
class Piece:
    """A part of a source that one worker reads: bytes `start` to `stop` of a text file, or rows of a table."""

    file: str
    #: the file relative to the source's root, which is what lineage carries
    name: str
    start: int = 0
    #: None: to the end
    stop: int | None = None
    #: number of the line at byte `start`
    line: int = 1


class Source(Component, family="source"):
    """Where rows come from and which of their columns are ours. A kind of your own writes `pieces` and `records`."""

    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Our column: theirs, such as {text: question, id: uid}; a dotted path (answers.0.text) looks "
        "inside. Columns left out have the same name on both sides; ids come from the content unless id is here.",
    )
    carry: tuple[str, ...] = Field((), description="Their columns to keep in each row's meta.")
    task: str | None = Field(None, description="Name of the task, where several are mixed.")
    implicit_prompt: bool = Field(
        False, description="Preference pairs without a prompt column: the prompt is what both dialogues begin with."
    )

    def pieces(self) -> list[Piece]:
        """How the source is cut for workers; StorageError where there is nothing."""
        raise TypeError(f"{type(self).__name__} must define pieces()")

    def records(self, piece: Piece) -> Iterator[Item]:
        """The records of one piece, in order; what cannot be read comes as `Bad`."""
        raise TypeError(f"{type(self).__name__} must define records()")

    @property
    def carried(self) -> tuple[str, ...]:
        """All their columns that go into meta."""
        return self.carry

    def peek(self) -> list[str] | None:
        """The source's columns where they can be had in milliseconds, else None."""
        return None

    def count(self) -> int | None:
        """About how many records there are, where that can be had without parsing them; else None."""
        return None

    def first_pieces(self) -> list[Piece]:
        """Where a look at the first records begins."""
        return self.pieces()

    def first_columns(self) -> list[str] | None:
        """The columns of the first records that can be read; None where none can."""
        from tilth.data.readers import Record

        for piece in self.first_pieces()[:FIRST_PIECES]:
            items = islice(self.records(piece), FIRST_RECORDS)
            found = [path for item in items if isinstance(item, Record) for path in _paths(item.value)]
            if found:
                return list(dict.fromkeys(found))
        return None

    def check(self) -> list[Problem]:
        return self.column_problems(self.peek(), {**self.columns, **{f"carry.{name}": name for name in self.carry}})

    def column_problems(self, found: list[str] | None, wanted: Mapping[str, str]) -> list[Problem]:
        """One problem for each wanted column (ours: theirs) that is not among those found."""
        if found is None:
            return []
        return [
            Problem(ours if ours.startswith("carry.") else f"columns.{ours}", *_absent(theirs, found))
            for ours, theirs in wanted.items()
            if theirs not in found
        ]


def _absent(name: str, found: list[str]) -> tuple[str, str]:
    close = difflib.get_close_matches(name, found, n=1, cutoff=0.6)
    mend = f'did you mean "{close[0]}"?' if close else f"there are: {', '.join(found[:20])}"
    return f"the source has no column {name!r}", mend


def _paths(value: Any, prefix: str = "") -> list[str]:
    """Every dotted path into a record, outermost first; the first item of a list stands for the others."""
    found: list[str] = []
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += [f"{prefix}{key}", *_paths(item, f"{prefix}{key}.")]
    return found


class Files(Source):
    """Base of the sources that lie in files."""

    path: DataFiles = Field(description="A file, directory, glob or URI; .gz, .bz2 and .zst are decompressed.")
    max_record_bytes: int = Field(
        8 << 20, ge=1024, description="A larger record goes to quarantine and is never held in memory."
    )

    def files(self) -> list[tuple[str, str]]:
        """Every file, with its name relative to the source's root; StorageError where none matches."""
        if "://" in self.path:
            found = remote_files(self.path)
        else:
            names, root = local_files(self.path)
            found = [(name, posixpath.relpath(name, root)) for name in names]
        if not found:
            raise StorageError(no_match(self.path))
        return found

    def pieces(self) -> list[Piece]:
        return [Piece(file, name) for file, name in self.files()]

    def first_pieces(self) -> list[Piece]:
        return [Piece(file, name) for file, name in self.files()[:FIRST_PIECES]]

    def check(self) -> list[Problem]:
        try:
            if "://" not in self.path and not local_files(self.path)[0]:
                return [Problem("path", no_match(self.path), "check the path")]
            return super().check()
        except OSError as error:
            return [Problem("path", f"cannot be read: {error.strerror}: {error.filename}", "check the path")]


class Text(Files):
    """Base of the line-oriented sources."""

    def peek(self) -> list[str] | None:
        # .zst needs pyarrow and a URI needs fsspec: both too slow for a check
        if "://" in self.path or packed(local_files(self.path)[0][0]) == "zst":
            return None
        return self.first_columns()

    def count(self) -> int | None:
        counts = [] if "://" in self.path else [count_lines(file) for file, _ in self.files()]
        return sum(count or 0 for count in counts) if counts and None not in counts else None


class Jsonl(Text):
    """JSON Lines: one object a line."""

    def pieces(self) -> list[Piece]:
        from tilth.data.readers import cut_lines

        return [Piece(file, name, *span) for file, name in self.files() for span in cut_lines(file)]

    def records(self, piece: Piece) -> Iterator[Item]:
        from tilth.data.readers import decompressed, read_jsonl

        with opened(piece.file) as handle:
            handle.seek(piece.start)
            stream = decompressed(handle, piece.file)
            yield from read_jsonl(stream, self.max_record_bytes, piece.line, piece.stop)


class Csv(Text):
    """CSV with a header line (RFC 4180, UTF-8); quoted fields may span lines."""

    delimiter: str = Field(",", pattern=r'^[^"\r\n]$', description='One character between fields; "\\t" for TSV.')

    def records(self, piece: Piece) -> Iterator[Item]:
        from tilth.data.readers import decompressed, read_csv

        with opened(piece.file) as handle:
            yield from read_csv(decompressed(handle, piece.file), self.max_record_bytes, self.delimiter)


class Parquet(Files):
    """Parquet files, cut along their row groups."""

    version: ClassVar[int] = 2  # a row with a column of categories is as large as its own values

    def count(self) -> int | None:
        from tilth.data.tables import parquet_rows

        counts = [parquet_rows(file) for file, _ in self.files()]
        return None if None in counts else sum(count or 0 for count in counts)

    def pieces(self) -> list[Piece]:
        from tilth.data.tables import parquet_spans

        return [Piece(file, name, *span) for file, name in self.files() for span in parquet_spans(file)]

    def records(self, piece: Piece) -> Iterator[Item]:
        from tilth.data.tables import read_parquet

        yield from read_parquet(piece, self.max_record_bytes)


def _hub_or_directory(text: str) -> str:
    local = text.startswith((".", "/", "~")) or Path(text).is_dir()
    return DataPath(text) if local else text


class HuggingFace(Source):
    """A dataset of the Hugging Face hub by name, or one saved with `save_to_disk`."""

    path: Annotated[str, Field(min_length=1), AfterValidator(_hub_or_directory)] = Field(
        description="Hub name such as openai/gsm8k, or the directory of a saved dataset."
    )
    name: str | None = Field(None, description="Configuration of a hub dataset.")
    subset: str = Field("train", description="Which of its splits to read.")
    revision: str | None = Field(None, description="Commit of a hub dataset; without it results may change.")
    rows_in_piece: ClassVar[int] = 50_000

    def pieces(self) -> list[Piece]:
        from tilth.data.tables import open_dataset

        # a worker's current directory is not ours
        where = str(self._folder.absolute()) if isinstance(self.path, DataPath) else self.path
        rows = len(open_dataset(self, where))
        step = self.rows_in_piece
        return [Piece(where, self.subset, at, min(at + step, rows)) for at in range(0, rows, step)]

    def records(self, piece: Piece) -> Iterator[Item]:
        from tilth.data.tables import open_dataset, read_dataset

        yield from read_dataset(open_dataset(self, piece.file), piece)

    def peek(self) -> list[str] | None:
        inside = any("." in name for name in (*self.columns.values(), *self.carry))
        if inside or not isinstance(self.path, DataPath):  # its small files name whole columns only
            return None
        return features(split_folder(self._folder, self.subset))

    def count(self) -> int | None:
        if not isinstance(self.path, DataPath):
            from tilth import hub

            return hub.dataset_rows(self.path, self.name, self.subset, self.revision)
        from tilth.data.tables import saved_rows

        return saved_rows(split_folder(self._folder, self.subset))

    def check(self) -> list[Problem]:
        if isinstance(self.path, DataPath) and (problem := unsaved(self.path, self.subset)):
            return [problem]
        return super().check()

    @property
    def _folder(self) -> Path:
        return Path(self.path).expanduser()


class Inline(Source):
    """Rows written in the recipe itself."""

    rows: Annotated[tuple[dict[str, Any], ...], AfterValidator(all_plain)] = Field(
        min_length=1, description="The rows, each a mapping of its columns."
    )

    def pieces(self) -> list[Piece]:
        return [Piece("inline", "inline")]

    def records(self, piece: Piece) -> Iterator[Item]:
        from tilth.data.readers import Record

        for number, row in enumerate(self.rows, 1):
            yield Record(number, thawed(row))

    def peek(self) -> list[str] | None:
        return self.first_columns()

    def count(self) -> int | None:
        return len(self.rows)
