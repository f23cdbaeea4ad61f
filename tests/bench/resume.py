"""How much is computed twice when the driver is killed (SIGKILL) with half of the units committed, and resumed.

Every unit leaves a mark when a worker begins it; marks beyond the number of units are work begun twice. A unit that
had only just begun when the kill came counts whole.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.bench.paired import ROOT
from tests.bench.result import Options, Result
from tests.bench.units import Marked, dataset_at, quiet, read_marks
from tilth.augment.back_translation import BackTranslation
from tilth.data.chain import Chain, cut
from tilth.data.engine import run_units
from tilth.data.ledger import Ledger
from tilth.data.transform import Resources
from tilth.storage import Store

SUMMARY = "share of the units computed twice after a kill -9 of the driver at half of them"


def run(folder: Path, rows: int, workers: int) -> None:
    """The run that is killed and resumed."""
    quiet()
    source = dataset_at(folder / "source", rows)
    ledger = Ledger(Store.at(folder / "out"), "bench", cut(source))
    chain = Chain(source.store, source.row_type, (BackTranslation(),))
    work = Marked(chain, str(folder / "marks.jsonl"), begun=True)
    run_units(work, ledger, Resources(workers=workers), "resume")


def missing(options: Options) -> str | None:
    return None


def measure(options: Options) -> Iterator[Result]:
    rows = options.size(160, 1_280)
    for workers, where in ((0, "in one process"), (2, "on Ray, two actors")):
        found = [_redone(rows, workers) for _ in range(options.rounds)]
        units = found[0][1]
        note = f"units computed twice: {[twice for twice, _ in found]} of {units}"
        yield Result(f"resume: redone, {where}", median(twice for twice, _ in found) / units, len(found), note=note)


def _redone(rows: int, workers: int) -> tuple[int, int]:
    """(units computed twice, units) of a run killed at half and resumed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        units = len(cut(dataset_at(folder / "source", rows)))
        command = [sys.executable, "-m", __spec__.name, str(folder), str(rows), str(workers)]
        # a session of its own: nothing of the killed run is left to finish a unit behind our back
        first = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
        while _committed(folder) < units // 2:
            if first.poll() is not None:
                raise RuntimeError(f"the run ended with {first.returncode} before it was killed")
            time.sleep(0.005)
        # at any moment of a unit, not just after a commit
        time.sleep(random.uniform(0, 0.5))
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        if _committed(folder) != units:
            raise RuntimeError("units are missing after the resumed run")
        return len(read_marks(folder / "marks.jsonl")) - units, units


def _committed(folder: Path) -> int:
    return len(list(folder.glob("out/units/*.parquet")))


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
