"""Rounds of a generating stage: ask, make, gate, look at all rows together, and ask again until there is enough.

    rounds/0003/asks.parquet    what round 3 asks, where a pool decides it
    rounds/0003/units, ledger   what came of it, see `tilth.data.ledger`
    rounds/0003/spent.json      seconds that it took so far, for a process that is killed
    rounds/0003/round.json      written last: tokens, seconds, and the limit that ended it, if one did

A resumed run reads the rounds that are done and plans the one under way again: the same pool gives the same asks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

from tilth import ui
from tilth.data.chain import cut, decided, looks_at_all
from tilth.data.dataset import Dataset
from tilth.data.engine import run_units
from tilth.data.finish import accepted_rows
from tilth.data.ledger import HEAD, Ledger, Tally, Unit
from tilth.data.schema import ASIDE, NEW, Row, to_table
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.generate.budget import Meter, lacking
from tilth.generate.method import Method, Pool, PoolMethod, RowMethod, reads
from tilth.generate.naming import in_series, series
from tilth.generate.work import Generating
from tilth.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from tilth.data.transform import Fitted
    from tilth.generate.stage import Generate

ASKS, SPENT = "asks.parquet", "spent.json"
#: how often the time of a round under way is noted
SPENT_SECONDS = 30.0
#: rounds in a row without an accepted row after which a stage gives up
BARREN_ROUNDS = 3
LEAST_RATE = 0.05


@dataclass
class Books:
    """The ledgers of all rounds as one. See `tilth.data.finish.Books`."""

    store: Store
    ledgers: list[Ledger] = field(default_factory=list)

    def tables(self) -> Iterator[pa.Table]:
        return chain.from_iterable(ledger.tables() for ledger in self.ledgers)

    def tally(self) -> Tally:
        return sum((ledger.tally() for ledger in self.ledgers), Tally())

    def clear(self) -> None:
        for ledger in self.ledgers:
            ledger.clear()


class Rounds:
    """All rounds of one stage."""

    def __init__(self, stage: Generate, store: Store, fingerprint: str, source: Dataset, context: Inputs) -> None:
        self.stage, self.store, self.source, self.context = stage, store, source, context
        self.fingerprint = fingerprint
        self.books = Books(store)
        self.meter = Meter(stage.budget)
        self.reasons: dict[str, str] = {}
        self.kept: list[Row] = []
        self.history: list[dict[str, Any]] = []
        self.noted = 0.0
        self.fitted: tuple[Fitted, ...] | None = None
        #: whether any value was ever short of its balance: then more rows than the target may be wanted
        self.topping_up = False

    def run(self, title: str) -> str:
        """Work until there is enough, and say why it ended."""
        why = None
        while why is None:
            number = len(self.history)
            short = self._shortfall()
            self.topping_up |= bool(short)
            why = self.enough(short) or self.barren(short) or self._round(number, f"{title}: round {number + 1}", short)
        if self.stage.target is not None and not self.topping_up:
            self._cut_surplus(self.stage.target)
        ui.reporter().say(f"{title}: ended with {why}{lacking(self._shortfall())}")
        return why

    def enough(self, short: Mapping[str, int]) -> str | None:
        """That the target is met and nothing is short of its balance; None while rows are wanted."""
        target = self.stage.target
        if short or len(self.kept) < (target or 0):
            return None
        if target is None:
            return "balance: no value is short" if self.topping_up else None
        return f"target: {target:,} rows"

    def barren(self, short: Mapping[str, int]) -> str | None:
        """That round after round nothing passed the gates, or nothing of what the balance lacks."""
        last = self.history[-BARREN_ROUNDS:]
        if len(last) < BARREN_ROUNDS or not isinstance(self.stage.method, PoolMethod):
            return None  # a dataset ends by itself
        if not any(item["accepted"] for item in last):
            return f"barren: of the last {BARREN_ROUNDS} rounds no row was accepted"
        if short and len(self.kept) >= (self.stage.target or 0) and last[0]["short"] <= sum(short.values()):
            return f"barren: in the last {BARREN_ROUNDS} rounds the balance came no nearer"
        return None

    def _given(self, rows: Iterable[Row]) -> Iterable[Row]:
        """Rows of the data as steps see them, where they have the columns of what is made: aside if not passed on."""
        if self.source.row_type != self.stage.method.makes:
            return ()
        return rows if self.stage.carries(self.source) else ({**row, ASIDE: True} for row in rows)

    def _shortfall(self) -> dict[str, int]:
        """Rows that steps with targets of their own still want, by value."""
        total: Counter[str] = Counter()
        for step in self.stage.steps:
            ask = getattr(step, "shortfall", None)
            if ask is not None:
                total.update(ask(chain(self._given(self.seeds), self.kept)))
        return dict(total)

    @cached_property
    def method(self) -> Method:
        """The stage's method, which has seen the data."""
        return self.stage.method.seeing(self.source.split(*reads(self.stage.method)), self.context)

    @cached_property
    def seeds(self) -> list[Row]:
        """The training rows of the dataset, for those who ask for all of them."""
        return list(self.source.split("train").rows())

    @cached_property
    def series(self) -> str:
        """What the ids of a pool method's asks begin with."""
        return series(self.stage.method.via, self.source)

    def _wanted(self, short: Mapping[str, int]) -> int:
        """How many rows a round should make, or of a dataset ask about, so that about enough come.

        By what came of each that was wanted before; at first as if all that can come of it did.
        """
        asked = sum(item["wanted"] for item in self.history)
        method = self.stage.method
        rate = len(self.kept) / asked if asked else (method.per_ask if isinstance(method, RowMethod) else 1)
        target = self.stage.target or (0 if self.topping_up else math.inf)
        missing = max(target - len(self.kept), sum(short.values()))
        wanted = math.ceil(missing / max(LEAST_RATE, rate)) if missing < math.inf else math.inf
        if isinstance(method, PoolMethod):
            return int(min(self.stage.round_rows, wanted))
        # of a dataset of which hardly a row passes each portion is as large as all before: few rounds see all of it
        return int(min(len(self.source), wanted if rate >= LEAST_RATE else max(wanted, asked)))

    def _round(self, number: int, title: str, short: Mapping[str, int]) -> str | None:
        """One round; returns what ends the stage, None when another may follow."""
        store = self.store.sub(f"rounds/{number:04d}")
        done = store.read_json("round.json")
        self.meter.before = self.noted = store.read_json(SPENT) or 0.0
        # what a round made before its process was killed is taken in, and no unit begun where that is over the budget
        if not store.exists(HEAD) and (over := self.meter.exceeded()):
            return over
        wanted = self._wanted(short)
        planned = self._units(store, number, wanted, short)
        if planned is None:
            return "exhausted: the method has nothing more to ask"
        asks, units = planned
        ledger = Ledger(store, self.fingerprint, units)
        self.books.ledgers.append(ledger)
        if done is None:
            done = self._work(store, asks, ledger, title)
        self._settle(number, ledger, {**done, "wanted": wanted, "short": sum(short.values())})
        stopped: str | None = done["stopped"]
        return stopped

    def _units(
        self, store: Store, number: int, wanted: int, short: Mapping[str, int]
    ) -> tuple[Store, list[Unit]] | None:
        """Where the asks of a round lie and how they are cut; None when there are none."""
        method = self.stage.method
        if not isinstance(method, PoolMethod):
            units = self._next(wanted)
            return (self.source.store, units) if units else None
        planned = method.plan(number, Pool(self.seeds, self.kept, short), wanted)
        if not planned:
            return None
        asks = in_series(planned, method.via, self.series)
        if not store.exists(ASKS):
            _write_asks(store, asks, method.makes)
        size = self.stage.unit_rows or min(64, max(8, math.ceil(len(asks) / 16)))
        spans = [(start, min(start + size, len(asks))) for start in range(0, len(asks), size)]
        return store, [Unit(index, ASKS, *span) for index, span in enumerate(spans)]

    def _next(self, wanted: int) -> list[Unit]:
        """The units of a dataset that a round goes through: all, or as many as it takes where gates look back after."""
        units = cut(self.source.split(*reads(self.stage.method)), self.stage.unit_rows)
        left = units[sum(len(ledger.units) for ledger in self.books.ledgers) :]
        if not self.in_portions:
            return left
        before = accumulate((len(unit) for unit in left), initial=0)
        return [unit for unit, rows in zip(left, before, strict=False) if rows < wanted]

    @cached_property
    def in_portions(self) -> bool:
        """Whether a dataset is gone through piece by piece: what is kept is known after each, as some step sees all."""
        return self.stage.target is not None and any(map(looks_at_all, self.stage.steps))

    def _work(self, store: Store, asks: Store, ledger: Ledger, title: str) -> dict[str, Any]:
        stage = self.stage
        if self.fitted is None:
            self.fitted = tuple(step.fit(self.source.rows(), self.context) for step in stage.steps)
        work = Generating(asks, self.method, stage.generator, stage.steps, self.context, self.fitted)
        why = run_units(work, ledger, stage.resources, title, self._limit)
        done = {"stopped": why, "seconds": round(self.meter.under_way, 1)}
        store.write_json("round.json", done)
        return done

    def _limit(self, ledger: Ledger) -> str | None:
        """The budget, and for methods that go through a dataset the target, where no row of a unit goes later."""
        self._note(ledger.store)
        records = ledger.records.values()
        rows = sum(record.tally.inputs for record in records)
        if over := self.meter.exceeded(rows, ledger.usage()):
            return over
        target = self.stage.target
        if target is None or self.topping_up or self.in_portions or isinstance(self.stage.method, PoolMethod):
            return None
        return f"target: {target:,} rows" if sum(record.tally.accepted for record in records) >= target else None

    def _note(self, store: Store) -> None:
        """Write down the time that the round took so far, now and then: a run that is killed has spent it."""
        if self.meter.under_way - self.noted >= SPENT_SECONDS:
            self.noted = self.meter.under_way
            store.write_json(SPENT, self.noted)

    def _settle(self, number: int, ledger: Ledger, done: Mapping[str, Any]) -> None:
        """Look at the round's rows beside all others, and take what stays into the pool."""
        made = list(accepted_rows(ledger))
        self.reasons.update(self._decide(made))
        new = [row for row in made if row["id"] not in self.reasons]
        self.kept += new
        tally, usage = ledger.tally(), ledger.usage()
        self.meter.add(tally.inputs, usage, done["seconds"])
        self.history.append({**done, "made": tally.inputs, "accepted": len(new), "usage": dict(usage)})
        ui.reporter().say(f"round {number + 1}: {len(new):,} of {tally.inputs:,} rows kept, {len(self.kept):,} in all")

    def _decide(self, made: Sequence[Row]) -> dict[str, str]:
        """Verdicts on the round's rows of every step that looks at all rows."""

        def seen() -> Iterator[Row]:
            return chain(self._given(self.source.rows()), self.kept, ({**row, NEW: True} for row in made))

        return decided(self.stage.steps, seen, self.context, {row["id"] for row in made})

    def _cut_surplus(self, target: int) -> None:
        for row in self.kept[target:]:
            self.reasons[row["id"]] = f"surplus: beyond the target of {target:,}"
        self.kept = self.kept[:target]

    def figures(self, why: str) -> dict[str, Any]:
        """What the stage's artifact says of the rounds."""
        usage = self.meter.usage
        seconds = sum(item["seconds"] for item in self.history)
        return {
            "ended": why,
            "short": self._shortfall(),
            "rounds": self.history,
            "usage": usage,
            "seconds": seconds,
            "cost": self.stage.budget.cost(usage),
        }


def _write_asks(store: Store, asks: list[Row], row_type: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(to_table(asks, row_type), sink, row_group_size=512, compression="zstd")
    store.write(ASKS, sink.getvalue().to_pybytes())


def refuse_empty(rounds: Rounds, why: str) -> None:
    """StageError when nothing was accepted, with the reasons that took most rows."""
    if rounds.kept:
        return
    reasons: Counter[str] = Counter(why.partition(":")[0] for why in rounds.reasons.values())
    for table in rounds.books.tables():
        reasons.update(reason.partition(":")[0] for reason in table["reason"].to_pylist() if reason)
    tally = ", ".join(f"{count:,} {name}" for name, count in reasons.most_common(5)) or "nothing was made"
    raise StageError(f"no row was accepted ({why}); reasons: {tally}")
