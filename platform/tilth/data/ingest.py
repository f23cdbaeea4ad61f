"""The work of the data stage: one piece of a source is one unit, whose records become rows in a worker."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from tilth.data.clean import Cleaning
from tilth.data.ledger import Unit
from tilth.data.records import Shaper
from tilth.data.schema import Row
from tilth.data.source import Piece, Source
from tilth.errors import StageError

if TYPE_CHECKING:
    from tilth.data.work import Leg, LegFunction

#: between a row's id and its place while ids may still clash; `place_rows` takes the place off again
MARK = "@"


def pieces(sources: Mapping[str, Source]) -> tuple[tuple[str, Piece], ...]:
    """The pieces of all sources, each with its split, in the order in which duplicates are resolved."""
    return tuple((split, piece) for split, source in sources.items() for piece in source.pieces())


@dataclass(frozen=True)
class Ingest:
    """Reads pieces, one a unit. `sources` by split, "" where there is none yet. See `tilth.data.work.Work`."""

    row_type: str
    sources: Mapping[str, Source]
    clean: Cleaning
    pieces: Sequence[tuple[str, Piece]]
    resources: ClassVar[None] = None
    in_flight: ClassVar[int] = 1

    def units(self) -> list[Unit]:
        """Known by what is read, not by where it lies: files may move between a run that was killed and the next."""
        named = [{**asdict(piece), "split": split, "file": None} for split, piece in self.pieces]
        return [Unit(index, json.dumps(name)) for index, name in enumerate(named)]

    @property
    def legs(self) -> tuple[Leg, ...]:
        return (self,)

    def load(self) -> LegFunction:
        return lambda unit, rows: self._rows(unit)

    def _rows(self, unit: Unit) -> Iterator[Row]:
        split, piece = self.pieces[unit.index]
        rows = self._shaper(split).rows(self.sources[split].records(piece), piece.name)
        for number, row in enumerate(rows):
            yield {**row, "id": f"{row['id']}{MARK}{unit.index}.{number}"}

    def inputs(self, unit: Unit) -> None:
        return None

    def poisoned(self, unit: Unit, why: str) -> list[Row]:
        _, piece = self.pieces[unit.index]
        first = piece.line if piece.line > 1 else piece.start + 1  # a line of a text, or a row of a table
        raise StageError(
            f"{piece.name} kills every worker process that reads it from record {first:,} on, most likely for want of "
            "memory, and how many rows would be lost with it is not known: use fewer workers (resources.workers), a "
            "smaller max_record_bytes, or cut the file into smaller ones"
        )

    def _shaper(self, split: str) -> Shaper:
        return Shaper(self.sources[split], self.row_type, self.clean, split or None)
