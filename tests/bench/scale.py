"""What 10⁹ rows and 512 GPUs ask of the driver: figures measured on few rows and units, multiplied. No Ray, no GPU.

    python -m tests.bench.scale [--rows 1e9] [--gpus 512] [--rate 50]

`rate`: rows that one GPU makes in a second. Prints the table that stands in cluster/README.md.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.bench.result import banking_texts
from tests.bench.traffic import FOOTER, LIMITS, LOOK, UNIT, limited
from tilth.data.chain import MOST_UNITS, UNIT_ROWS
from tilth.data.finish import finish
from tilth.data.ingest import MARK
from tilth.data.ledger import AHEAD, Ledger, Record, Tally, Unit, commit
from tilth.data.placement import place_rows
from tilth.data.schema import original
from tilth.data.split import Split
from tilth.storage import Store

UNITS, ROWS = 16, 10_000
#: units whose books are measured; nothing is written for them
BOOKS = 20_000
#: until an object store answers; not measured
ANSWER_SECONDS = 0.03


@dataclass(frozen=True)
class Measured:
    """Of one unit, or of one row; bytes and seconds."""

    line: float
    unit_memory: float
    row_memory: float
    row_size: float
    place_row: float
    commit_row: float
    finish_row: float
    note: float


def measured() -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.at(folder)
        units = [Unit(index, "data/00000.parquet", index * ROWS, (index + 1) * ROWS) for index in range(UNITS)]
        ledger = Ledger(store.sub("stage"), "f" * 64, units)
        seconds = _committed(ledger)
        place = partial(place_rows, ledger, "labelled", "exact", Split(test=0.1), None)
        placing, memory = _seconds(place), _grown(place)
        finishing = _seconds(partial(finish, ledger, "labelled"))
        line, unit_memory, note = _books(store.sub("books"))
    rows = UNITS * ROWS
    size = sum(record.size for record in ledger.records.values()) / rows
    return Measured(line, unit_memory, memory / rows, size, placing / rows, seconds / rows, finishing / rows, note)


def _committed(ledger: Ledger) -> float:
    """Seconds of committing every unit."""
    texts = banking_texts(ROWS)
    began = time.perf_counter()
    for unit in ledger.units.values():
        rows = [
            original(
                f"{unit.index:06d}-{place:09d}{MARK}{unit.index}.{place}",
                "train",
                {"text": f"{text} {unit.index}.{place}", "label": "a_label"},
            )
            for place, text in enumerate(texts)
        ]
        ledger.add(commit(ledger.store, unit, rows, "labelled"))
    ledger.flush()
    return time.perf_counter() - began


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _grown(work: Callable[[], object]) -> int:
    """Bytes that Python holds at the worst moment of a call."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _books(store: Store) -> tuple[float, float, float]:
    """Bytes of a manifest line, bytes of memory and seconds of the driver for each unit noted."""
    tracemalloc.start()
    units = [Unit(index, f"data/{index // 100:05d}.parquet", index, index + 1) for index in range(BOOKS)]
    ledger = Ledger(store, "f" * 64, units)
    tally = Tally(inputs=512, made=512, accepted=900, filtered=124)
    record = Record(0, tally, 1 << 17, "a" * 64, units[0].file)
    for unit in units:
        ledger.add(Record(unit.index, tally, 1 << 17, f"{unit.index:064d}", unit.file))
    ledger.flush()
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    again = Ledger(store.sub("again"), "f" * 64, units)
    began = time.perf_counter()
    for unit in units:
        again.add(Record(unit.index, tally, 1 << 17, f"{unit.index:064d}", unit.file))
    again.flush()
    return len(record.line()) + 1, memory / BOOKS, (time.perf_counter() - began) / BOOKS


def table(found: Measured, rows: float, gpus: int, rate: float) -> str:
    """The figures for a run of that size, and what each is made of."""
    size = max(UNIT_ROWS[1], math.ceil(rows / MOST_UNITS))
    units = rows / size
    per_second = gpus * rate / size
    memory, placing = units * found.unit_memory / 2**30, rows * found.row_memory / 2**30
    working, joining = rows * found.commit_row / 3600, rows * found.finish_row / 3600
    lines = [
        ("units", f"{units:,.0f}", f"{size:,} rows each"),
        ("manifest", f"{units * found.line / 2**20:.0f} MiB", f"{found.line:.0f} bytes a unit, in segments"),
        ("driver memory for the books", f"{memory:.2f} GiB", f"{found.unit_memory:.0f} bytes a unit"),
        ("commits", f"{per_second:.1f} a second", f"{gpus} GPUs at {rate:g} rows/s"),
        ("commits that the driver can note", f"{1 / found.note:,.0f} a second", f"{found.note * 1e6:.0f} µs each"),
        ("manifest segments written", f"{min(0.5, per_second):.2f} a second", "at most one PUT in two seconds"),
        ("committing, in the workers", f"{working:,.0f} core hours", f"{found.commit_row * 1e6:.0f} µs a row"),
        ("joining units, in the driver", f"{joining:,.1f} h", f"{found.finish_row * 1e6:.1f} µs a row"),
        (
            "stage `data`: placing rows, in the driver",
            f"{rows * found.place_row / 3600:,.1f} h",
            f"{found.place_row * 1e6:.1f} µs a row",
        ),
        ("stage `data`: memory to place rows", f"{placing:,.0f} GiB", f"{found.row_memory:.0f} bytes a row"),
        *_traffic(found.row_size, units, size, per_second),
    ]
    head = ["| What | At this size | Measured |", "| --- | --- | --- |"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)])


def _traffic(row_size: float, units: float, size: int, per_second: float) -> list[tuple[str, str, str]]:
    """What object storage is asked for."""
    asked, looks = limited(UNIT), sum(LOOK.values())
    up, down = per_second * row_size * size, per_second * (row_size * size + FOOTER)
    return [
        *(
            (
                f"{kind} of one prefix, by the workers"
                if kind == "PUT"
                else "GET, HEAD and LIST of one, by the workers",
                f"{per_second * asked[kind]:.1f} a second",
                f"{asked[kind]} a unit; S3 takes {limit:,} a second",
            )
            for kind, limit in LIMITS.items()
        ),
        ("bytes to and from storage", f"{up / 1e6:.1f} and {down / 1e6:.1f} MB/s", f"{row_size:.0f} bytes a row"),
        (
            "waiting for storage, in the driver",
            f"{units * looks * ANSWER_SECONDS / AHEAD / 3600:.1f} h a pass over all units",
            f"{looks} requests a unit; supposed: {ANSWER_SECONDS * 1000:.0f} ms each, {AHEAD} units at once",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e9)
    parser.add_argument("--gpus", type=int, default=512)
    parser.add_argument("--rate", type=float, default=50.0)
    given = parser.parse_args()
    print(table(measured(), given.rows, given.gpus, given.rate))


if __name__ == "__main__":
    main()
