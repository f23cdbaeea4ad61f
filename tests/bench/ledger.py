"""What the ledger costs: a chain with its units read, committed (fsync, rename) and recorded, over the bare function.

Both sides are in one process with the model loaded beforehand, one thread and the same pieces of 16 rows (what `cut`
makes of 1,000 rows; larger data has larger units and costs less). The ledger's side reads its rows from Parquet and
writes them; the bare side has them in memory and drops what it made. Turns are short, and four times as many as in
the other benchmarks, so that what else runs on the machine weighs on both alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tests.bench.paired import Facts, paired, timed
from tests.bench.result import Options, Result
from tests.bench.units import dataset_at, quiet
from tilth.augment.back_translation import BackTranslation
from tilth.augment.base import Augmenter, Sample, VariantsFunction
from tilth.augment.eda import Eda
from tilth.augment.similarity import Similarity
from tilth.data.chain import Chain, UnitReader, cut
from tilth.data.dataset import Dataset
from tilth.data.engine import run_units
from tilth.data.ledger import Ledger
from tilth.data.transform import Inputs, Resources, Transform
from tilth.data.work import Leg, LegFunction, Work
from tilth.storage import Store

SUMMARY = "cost of committing every unit, over the bare function"
AIM = 1.03
TURNS = 4
UNIT_ROWS = 16


class Echo(Augmenter):
    """Returns the text: a chain that costs nothing by itself."""

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        return _echo


def _echo(samples: list[Sample]) -> list[list[str]]:
    return [[sample.text] for sample in samples]


@dataclass
class Loaded:
    """`tilth.data.work.Work` without pools, whose models are loaded already."""

    work: Work
    run: LegFunction = field(init=False)
    resources: ClassVar[None] = None

    def __post_init__(self) -> None:
        (leg,) = self.work.legs
        self.in_flight, self.run = leg.in_flight, leg.load()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.work, name)

    @property
    def legs(self) -> tuple[Leg, ...]:
        return (self,)

    def load(self) -> LegFunction:
        return self.run


def missing(options: Options) -> str | None:
    return None


def measure(options: Options) -> Iterator[Result]:
    import torch

    torch.set_num_threads(1)
    quiet()
    cases: tuple[tuple[str, int, float | None, tuple[Transform, ...]], ...] = (
        ("back-translation (Bergamot)", options.size(48, 192), AIM, (BackTranslation(),)),
        ("EDA and a similarity gate (MiniLM)", options.size(96, 384), AIM, (Eda(), Similarity())),
        ("a chain that does nothing", options.size(3_200, 12_800), None, (Echo(),)),
    )
    for name, rows, aim, steps in cases:
        with tempfile.TemporaryDirectory() as folder:
            yield _case(name, dataset_at(Path(folder) / "source", rows), steps, aim, TURNS * options.rounds)


def _case(name: str, source: Dataset, steps: tuple[Transform, ...], aim: float | None, rounds: int) -> Result:
    units = cut(source, UNIT_ROWS)
    work = Loaded(Chain(source.store, source.row_type, steps))
    functions = [step.load(Inputs(), {}) for step in steps]
    reader = UnitReader(source.store)
    pieces = [reader.rows(unit) for unit in units]

    def bare() -> None:
        for piece in pieces:
            rows = [{**row, "meta": dict(row["meta"])} for row in piece]
            for function in functions:
                rows = function(rows)

    def ours() -> Facts:
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Store.at(folder), "bench", units)
            return timed(len(source), lambda: run_units(work, ledger, Resources(workers=0), "ledger"))

    found = paired(ours, lambda: timed(len(source), bare), rounds)
    a, b = found.medians()
    note = f"{len(source)} rows in {len(units)} units; {a:.4g} rows/s with the ledger, {b:.4g} without"
    cost, cpu = 1 / found.ratio(), 1 / found.ratio("cpu_rate")
    return Result(f"ledger: {name}", cost, rounds, aim, cpu, at_most=True, note=note)
