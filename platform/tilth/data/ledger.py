"""The ledger: every unit of work is committed with all its outputs at once, or not at all.

    units/00000012.parquet   all rows of unit 12: accepted ones, and dropped ones with their reason
    ledger/HEAD.json         whose ledger this is: the stage's fingerprint and how its input was cut
    ledger/00000003.jsonl    a segment of the manifest: one line for each unit committed since the last

A worker writes a unit file whole (temporary file, fsync, link; one PUT on an object store), and only where there is
none: that is the commit. The driver then writes manifest segments, never appending or replacing, so that the protocol
is the same on object stores. A unit file that no segment names yet (the driver died between the two) carries its own
tallies and is adopted. Redoing a unit is harmless: randomness belongs to row ids, so the bytes are the same. Where they
are not, as what a server answers, the first commit holds: a worker that was cut off and comes back after its unit was
redone finds that file and leaves it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING, Any

from tilth import meanwhile
from tilth.data.parts import ROW_GROUP, WHOLE, Hashing, batch, checked, digest, parts
from tilth.data.schema import NEW, Row, arrow_schema, to_table
from tilth.errors import StageError, StorageError
from tilth.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

HEAD = "ledger/HEAD.json"
#: while it is there, workers begin no unit
HALT = "ledger/HALT"
FLUSH_RECORDS = 200
FLUSH_SECONDS = 2.0
#: units that are read at once, of WHOLE bytes together
AHEAD = 8
_TALLY = b"tilth.tally"
_USAGE = b"tilth.usage"


@dataclass(frozen=True)
class Unit:
    """A piece of the input: rows `start` to `stop` (exclusive) of one source file or shard."""

    index: int
    source: str
    start: int = 0
    stop: int = 1

    @property
    def file(self) -> str:
        return f"units/{self.index:08d}.parquet"

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Tally:
    """What became of a unit: `inputs + made = accepted + filtered + quarantined`, always."""

    inputs: int = 0
    made: int = 0
    accepted: int = 0
    filtered: int = 0
    quarantined: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def check(self, what: str) -> None:
        """StageError unless the books balance."""
        if self.inputs + self.made != self.accepted + self.filtered + self.quarantined:
            raise StageError(f"{what}: rows were lost or invented: {self}; a transform must return each row once")


@dataclass(frozen=True)
class Record:
    """One line of the manifest."""

    unit: int
    tally: Tally
    size: int
    sha256: str
    file: str
    #: what its new rows say in `meta.usage`, summed: prompt_tokens, completion_tokens, and a judge's
    usage: dict[str, int] = field(default_factory=dict)

    def line(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(line: str | bytes) -> Record:
        data = json.loads(line)
        return Record(**{**data, "tally": Tally(**data["tally"])})


def is_quarantine(reason: str | None) -> bool:
    """Whether a row with this reason was unreadable or poisonous, rather than judged and dropped."""
    return reason is not None and reason.startswith("quarantined/")


def commit(store: Store, unit: Unit, rows: Iterable[Row], row_type: str, inputs: int | None = None) -> Record:
    """Write all rows of a unit as one file, atomically; `rows` may be a stream, memory stays bounded.

    `inputs` of them were there before, the others were made; None: the unit reads a source, all are inputs. Where
    another has committed the unit meanwhile, its file stays and the record is of that.
    """
    done: dict[str, Any] = {}

    def fill(handle: IO[bytes]) -> None:
        done.update(_write_unit(handle, rows, row_type, inputs))
        done["tally"].check(f"unit {unit.index}")

    if store.create_with(unit.file, fill):
        return Record(unit.index, file=unit.file, **done)
    if (first := _adopt(store, unit)) is None:
        store.remove(unit.file)
        raise StorageError(f"{store.at_url(unit.file)} was damaged after it was written; it is removed: run again")
    return first


def _write_unit(handle: IO[bytes], rows: Iterable[Row], row_type: str, inputs: int | None) -> dict[str, Any]:
    import pyarrow.parquet as pq

    hashed = Hashing(handle)
    counts: Counter[str] = Counter()
    usage: Counter[str] = Counter()
    stream = iter(rows)
    with pq.ParquetWriter(hashed, arrow_schema(row_type), compression="zstd") as writer:
        while group := list(batch(stream)):
            counts.update(map(_fate, group))
            for row in group:
                usage.update(row["meta"].get("usage", {}) if row.get(NEW) else {})
            writer.write_table(to_table(group, row_type), row_group_size=ROW_GROUP)
        total = counts.total()
        tally = Tally(total if inputs is None else inputs, 0 if inputs is None else total - inputs, **counts)
        writer.add_key_value_metadata({_TALLY: json.dumps(asdict(tally)), _USAGE: json.dumps(usage)})
    return {"tally": tally, "size": hashed.size, "sha256": hashed.digest.hexdigest(), "usage": dict(usage)}


def _fate(row: Row) -> str:
    if row["reason"] is None:
        return "accepted"
    return "quarantined" if is_quarantine(row["reason"]) else "filtered"


class Ledger:
    """The driver's side: which units are committed, across any number of deaths."""

    def __init__(self, store: Store, fingerprint: str, units: Iterable[Unit]) -> None:
        self.store = store
        self.units = {unit.index: unit for unit in units}
        self.records: dict[int, Record] = {}
        self._pending: list[Record] = []
        self._flushed = time.monotonic()
        self._segments = 0
        self.halted = False
        self._open(fingerprint)

    def _open(self, fingerprint: str) -> None:
        plan = hashlib.sha256(repr(sorted(self.units.items())).encode()).hexdigest()
        head = {"fingerprint": fingerprint, "units": len(self.units), "plan": plan}
        if (found := self.store.read_json(HEAD)) is None:
            self.store.write_json(HEAD, head)
        elif found != head:
            raise StorageError(
                f"{self.store.url} holds a ledger of other work ({found}); this stage is {head}; remove that directory"
            )
        self.store.remove(HALT)
        self._recover()

    def _recover(self) -> None:
        """Read the manifest, drop lines that are damaged or whose file is gone, adopt files that no line names."""
        segments = [name for name in self.store.list("ledger") if name.endswith(".jsonl")]
        self._segments = len(segments)
        present = self._present()
        for name in segments:
            for line in self.store.read(f"ledger/{name}").splitlines():
                record = _parsed(line)
                if record is not None and record.file in present and record.unit in self.units:
                    self.records[record.unit] = record
        self.adopt()
        self.flush()

    def _present(self) -> set[str]:
        return {f"units/{name}" for name in self.store.list("units") if name.endswith(".parquet")}

    def adopt(self) -> list[int]:
        """Take in units whose file is there though no record names it: their indices. A file that is not whole goes."""
        present = self._present()
        found = []
        for unit in (unit for unit in self.missing() if unit.file in present):
            if (record := _adopt(self.store, unit)) is None:
                self.store.remove(unit.file)
                continue
            self.add(record)
            found.append(record.unit)
        return found

    def missing(self) -> list[Unit]:
        """Units that are not committed yet, in order."""
        return [unit for index, unit in sorted(self.units.items()) if index not in self.records]

    def add(self, record: Record) -> None:
        """Note a committed unit; a manifest segment is written every few seconds."""
        self.records[record.unit] = record
        self._pending.append(record)
        if len(self._pending) >= FLUSH_RECORDS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def halt(self) -> None:
        """Have no further unit begun, here or by any worker, until the ledger is opened again."""
        self.halted = True
        self.store.write(HALT, b"")

    def flush(self) -> None:
        """Write the lines that are not yet in a segment."""
        self._flushed = time.monotonic()
        if self._pending:
            lines = "".join(record.line() + "\n" for record in self._pending).encode()
            # one that was taken for dead may have written it: none is replaced, and lines that stand twice say the same
            while not self._written(f"ledger/{self._segments:08d}.jsonl", lines):
                self._segments += 1
            self._segments += 1
            self._pending.clear()

    def _written(self, name: str, lines: bytes) -> bool:
        """Whether these lines are in that segment now, also where the store said otherwise of the very write."""
        return self.store.create(name, lines) or self.store.read(name) == lines

    def clear(self) -> None:
        """Remove the unit files: their rows are in the finished dataset."""
        self.store.remove("units")

    def usage(self) -> Counter[str]:
        """The tokens of all committed units."""
        return sum((Counter(record.usage) for record in self.records.values()), Counter())

    def tally(self) -> Tally:
        """The books over all committed units; StageError when they do not balance."""
        total = sum((record.tally for record in self.records.values()), Tally())
        total.check(self.store.url)
        return total

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The committed rows in the order of their units, every file checked against its hash; all columns, or some.

        One table for each unit, several of a large one: a unit may be a whole file of any size. The next ones are
        fetched meanwhile, for a distant store takes longer to answer than it takes to send a unit.
        """
        import pyarrow.parquet as pq

        records = (record for _, record in sorted(self.records.items()))
        for record, handle in meanwhile.ahead(self._read, records, AHEAD, lambda record: record.size, WHOLE):
            if handle is None:
                self.store.remove(record.file)
                raise StorageError(
                    f"{self.store.at_url(record.file)} was damaged after it was written (its sha256 differs); "
                    "it has been removed: run again and only that unit is redone"
                )
            with handle:
                yield from parts(pq.ParquetFile(handle), columns)  # half the time of read_table on a small unit

    def _read(self, record: Record) -> IO[bytes] | None:
        return checked(self.store, record.file, record.size, record.sha256)


def _parsed(line: bytes) -> Record | None:
    try:
        return Record.parse(line)
    except (ValueError, TypeError, KeyError):  # the unit's own file says all that the line would
        return None


def _adopt(store: Store, unit: Unit) -> Record | None:
    """The record of a unit file that has no manifest line; None where the file is not whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with store.open(unit.file) as handle:
            metadata = pq.read_metadata(handle).metadata or {}
    except pa.ArrowInvalid:
        return None
    if _TALLY not in metadata:
        return None
    tally = Tally(**json.loads(metadata[_TALLY]))
    usage = json.loads(metadata.get(_USAGE, b"{}"))
    sha256, size = digest(store, unit.file)
    return Record(unit.index, tally, size, sha256, unit.file, usage)
