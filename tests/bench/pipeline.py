"""The pipeline on Ray Data with two actors beside a bare multiprocessing pool of two with the same model.

Both make round trips through Bergamot of the same rows in pieces of the same size, one thread in each process. The
pool's loop is the bare one: two calls of the engine for a row, no sentences cut, nothing measured, nothing written.
The steady rate is taken in each worker from its first finished piece to its last. Start-up is given apart: seconds
from the call to the first finished piece, in a process that has Ray running (as in every stage but the first).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.paired import Facts, Worker, paired, serve_one
from tests.bench.result import Options, Result, banking_texts, compared
from tests.bench.units import Mark, dataset_at, marked, quiet, read_marks, steady
from tilth.augment.back_translation import BackTranslation
from tilth.augment.translators import Bergamot
from tilth.data.chain import cut
from tilth.data.engine import run_units
from tilth.data.ledger import Ledger
from tilth.data.transform import Inputs, Resources
from tilth.storage import Store

SUMMARY = "rows/s on Ray Data with two actors, over a bare multiprocessing.Pool(2)"
AIM = 0.95
WORKERS = 2

_round_trip: Callable[[list[str]], list[str]]


def _load_pool() -> None:
    global _round_trip
    forward, backward = (Bergamot(direction=way).load(Inputs()) for way in ("en-pt", "pt-en"))  # type: ignore[arg-type]

    def go(texts: list[str]) -> list[str]:
        abroad = [found[0] for found in forward(texts, [], 1)]
        return [found[0] for found in backward(abroad, [], 1)]

    _round_trip = go


def _piece(texts: list[str]) -> Mark:
    made = _round_trip(texts)
    return Mark.now(len(made))


def pool(arguments: Sequence[str]) -> Callable[[], Facts]:
    from multiprocessing import get_context

    texts = banking_texts(int(arguments[0]))
    with tempfile.TemporaryDirectory() as folder:
        spans = [(unit.start, unit.stop) for unit in cut(dataset_at(Path(folder), len(texts)))]

    def work() -> Facts:
        start = time.time()
        with get_context("spawn").Pool(WORKERS, _load_pool) as workers:
            marks = list(workers.imap_unordered(_piece, [texts[a:b] for a, b in spans]))
        return _facts(marks, start)

    return work


def ours(arguments: Sequence[str]) -> Callable[[], Facts]:
    from tilth import cluster

    # on a busy machine Ray's politeness would be measured: its workers run at niceness 15, the pool's at 0
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so
    quiet()
    cluster.ray_ready(num_cpus=WORKERS)
    rows = int(arguments[0])

    def work() -> Facts:
        with tempfile.TemporaryDirectory() as folder:
            source = dataset_at(Path(folder) / "source", rows)
            marks = Path(folder) / "marks.jsonl"
            ledger = Ledger(Store.at(Path(folder) / "out"), "bench", cut(source))
            start = time.time()
            run_units(marked(source, marks, BackTranslation()), ledger, Resources(workers=WORKERS), "pipeline")
            return _facts(read_marks(marks), start)

    return work


def _facts(marks: Sequence[Mark], start: float) -> Facts:
    whole = time.time() - start
    first = min(mark.wall for mark in marks) - start
    rows = sum(mark.rows for mark in marks)
    return {**steady(marks), "whole": rows / whole, "seconds": whole, "start": first}


def missing(options: Options) -> str | None:
    return None


def measure(options: Options) -> Iterator[Result]:
    rows = str(options.size(1_280, 5_120))
    with ExitStack() as stack:
        a, b = (stack.enter_context(Worker(__spec__.name, side, rows)) for side in SIDES)
        found = paired(a, b, options.rounds, warm=False)
    seconds, waits = _medians(found.a, found.b, "seconds"), _medians(found.a, found.b, "start")
    yield compared("pipeline / pool, steady", found, AIM, f"{rows} rows")
    note = f"{seconds} s in all, {waits} s to the first piece"
    yield Result("pipeline / pool, start-up included", found.ratio("whole"), options.rounds, note=note)


def _medians(a: list[Facts], b: list[Facts], key: str) -> str:
    return " and ".join(f"{median(facts[key] for facts in side):.1f}" for side in (a, b))


SIDES: dict[str, Callable[[Sequence[str]], Any]] = {"ours": ours, "pool": pool}

if __name__ == "__main__":
    serve_one(SIDES)
