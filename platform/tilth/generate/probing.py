"""A small probe of a generating stage: a few asks, from which the cost of all is told beforehand."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from tilth.data.chain import chained
from tilth.data.dataset import Dataset
from tilth.data.schema import NEW, Row
from tilth.data.transform import Inputs
from tilth.generate.method import Pool, PoolMethod, reads, rows_of
from tilth.generate.work import origins

if TYPE_CHECKING:
    from tilth.generate.stage import Generate

ASKS = 8


@dataclass(frozen=True)
class Probe:
    """What a few asks cost: rows made and accepted by the gates of a unit, tokens, seconds without loading."""

    asks: int
    made: int
    accepted: int
    tokens: int
    cost: float
    seconds: float
    loading: float

    def estimate(self, asks: int | None, target: int | None) -> dict[str, float]:
        """Rows, tokens, cost and seconds of the whole stage on one worker; nothing where the probe accepted nothing.

        `asks` is the number of all asks where a dataset decides it, `target` the rows at which the stage has enough.
        """
        if not self.accepted:
            return {}
        share = (asks or 0) / self.asks if asks else float("inf")
        if target is not None:
            share = min(share, target / self.accepted)
        if share == float("inf"):
            return {}
        figures = {"rows": self.accepted, "tokens": self.tokens, "cost": self.cost, "seconds": self.seconds}
        found: dict[str, float] = {name: value * share for name, value in figures.items() if value}
        found |= {name: round(found[name]) for name in ("rows", "tokens") if name in found}
        return {**found, "seconds": found["seconds"] + self.loading}


def probe(stage: Generate, source: Dataset, context: Inputs, asks: int = ASKS) -> tuple[Probe, int | None]:
    """Ask a few of the stage's first questions in this process; also how many there are in all, None for rounds."""
    chosen, total = _asks(stage, source, asks)
    start = time.perf_counter()
    make = stage.method.seeing(source.split(*reads(stage.method)), context).load(stage.generator, context)
    fitted = tuple(step.fit(source.rows(), context) for step in stage.steps)
    gates = chained(stage.steps, context, fitted)
    loaded = time.perf_counter()
    title = stage.generator.title if stage.generator else stage.method.kind
    made = rows_of(stage.method, title, chosen, make(chosen))
    rows = [row for row in gates([*origins(chosen, made), *made]) if row.get(NEW)]
    done = time.perf_counter()
    usage: Counter[str] = Counter()
    for row in rows:
        usage.update(row["meta"].get("usage", {}))
    accepted = sum(row["reason"] is None for row in rows)
    cost = stage.budget.cost(usage)
    figures = (accepted, sum(usage.values()), cost, done - loaded, loaded - start)
    return Probe(len(chosen), len(rows), *figures), total


def _asks(stage: Generate, source: Dataset, asks: int) -> tuple[list[Row], int | None]:
    if isinstance(stage.method, PoolMethod):
        return stage.method.plan(0, Pool(list(source.split("train").rows()), ()), stage.round_rows)[:asks], None
    given = source.split(*reads(stage.method))
    return list(islice(given.rows(), asks)), len(given)
