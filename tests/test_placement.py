"""Decisions over all rows, held against the rules written out row by row."""

from __future__ import annotations

import random
import re
from collections import Counter
from fractions import Fraction
from itertools import count

import pytest

from tilth.data.ledger import Ledger, Unit, commit
from tilth.data.placement import Placed, place_rows
from tilth.data.schema import Row, original
from tilth.data.split import Sampling, Split, place
from tilth.storage import Store

stores = count()


def committed(units: list[list[Row]]) -> Ledger:
    """Units as stage `data` commits them: ids marked, the rows that cleaning dropped among them."""
    ledger = Ledger(Store.at(f"memory://placement/{next(stores)}"), "x", [Unit(n, "") for n in range(len(units))])
    for unit, rows in zip(ledger.units.values(), units, strict=True):
        marked = [{**row, "id": f"{row['id']}@{unit.index}.{n}"} for n, row in enumerate(rows)]
        ledger.add(commit(ledger.store, unit, marked, "labelled"))
    return ledger


def applied(ledger: Ledger, placed: Placed) -> list[tuple[str, str, str | None, str | None]]:
    rows = [row for table in placed.apply(ledger.tables()) for row in table.to_pylist()]
    return [(row["id"], row["root"], row["split"], row["reason"]) for row in rows]


def expected(
    units: list[list[Row]], duplicates: str, split: Split, sampling: Sampling | None
) -> list[tuple[str, str, str | None, str | None]]:
    rows = [{**row, "mark": f"{row['id']}@{u}.{n}"} for u, unit in enumerate(units) for n, row in enumerate(unit)]
    order = [row for row in rows if row["reason"] is None]
    order.sort(key=lambda row: {"test": 0, "validation": 1}.get(row["split"], 2))
    before = {row["mark"]: row["split"] for row in order}
    taken, owners, holders = {row["id"] for row in order}, {}, {}
    for row in order:
        name, row["root"] = row["root"], row["id"]
        given_as = row["text"].lower().strip("!") if duplicates == "normalized" else row["text"]
        owner, content = owners.setdefault(name, (row, given_as))
        parent = name.rpartition("/")[0] if re.fullmatch(r".+/[^/]+\.\d+", name) else None
        if owner is not row:
            row["id"] = next(new for n in count(2) if (new := f"{name}~{n}") not in taken)
            taken.add(row["id"])
            if content != given_as:
                row["reason"] = f"quarantined/duplicate_id: {name!r} is the id of another row"
        elif parent in taken:
            row["reason"] = f"quarantined/reserved_id: {name!r} is what a row made from {parent!r} would be called"
        if row["reason"] is None and duplicates != "keep" and holders.setdefault(given_as, row) is not row:
            holder = holders[given_as]
            where = f" ({before[holder['mark']]})" if before[holder["mark"]] else ""
            label = f", labelled {holder['label']!r} there" if holder["label"] != row["label"] else ""
            row["reason"] = f"duplicate: of {holder['root']}{where}{label}"
    kept = [row for row in order if row["reason"] is None]
    draw([row for row in kept if row["split"] is None], split)
    if sampling is not None:
        sample(kept, sampling)
    return [(row["id"], row["id"], row["split"], row["reason"]) for row in rows]


def draw(rows: list[Row], split: Split) -> None:
    """Splits by the hash of the id that was given; where stratified, of each label by itself, and copies count once."""
    places = {row["root"]: place(split.seed, row["root"], "split") for row in rows}
    labels = {row["root"]: row["label"] for row in rows}
    edges = dict.fromkeys(labels, (split.test, split.test + split.validation))
    if split.stratify:
        for label, size in Counter(labels.values()).items():
            members = sorted((where, root) for root, where in places.items() if labels[root] == label)
            places |= {root: at for at, (_, root) in enumerate(members)}
            test, validation = Fraction(str(split.test)), Fraction(str(split.validation))
            halves_up = (int(size * test + Fraction(1, 2)), int(size * (test + validation) + Fraction(1, 2)))
            edges |= {root: halves_up for _, root in members}
    for row in rows:
        where, (test_edge, edge) = places[row["root"]], edges[row["root"]]
        row["split"] = "test" if where < test_edge else "validation" if where < edge else "train"


def sample(rows: list[Row], sampling: Sampling) -> None:
    """Rows of each split are taken by the hash of their id while there is room for their label, and room at all."""
    taken: Counter[tuple[str, str | None]] = Counter()
    for row in sorted(rows, key=lambda row: (place(sampling.seed, row["root"], "sample"), row["mark"])):
        split, label = row["split"], row["label"]
        if sampling.labels is not None and label not in sampling.labels:
            row["reason"] = "not_sampled: its label is not among those asked for"
        elif split not in sampling.splits:
            continue
        elif sampling.per_label is not None and taken[split, label] >= sampling.per_label:
            row["reason"] = f"not_sampled: over {sampling.per_label} of its label"
        elif sampling.rows is not None and taken[split, None] >= sampling.rows:
            row["reason"] = f"not_sampled: over {sampling.rows} rows"
        else:
            taken.update([(split, label), (split, None)])


# ids that speak of others, and few in all, so that everything clashes
NAMES = ("a", "b", "c", "a~1", "a~2", "a~3", "b~12", "a/x.0", "c~2/x.1", "b/x.0", "a/x.0/y.1", "é\n@1.2", "1", "2", "3")
SHARES = (0.0, 0.1, 0.25, 0.3)


def row(rng: random.Random) -> Row:
    name = rng.choice(NAMES) if rng.random() < 0.4 else str(rng.randrange(60))
    text = name if rng.random() < 0.8 else rng.choice((f"{name}!", "one", "One", str(rng.randrange(40))))
    found = original(name, "", {"text": text, "label": rng.choice("xyz")})
    return {**found, "split": None, "reason": "quarantined/null: text" if rng.random() < 0.1 else None}


def sampled(rng: random.Random) -> Sampling:
    return Sampling(
        labels=rng.choice((None, None, ("x", "z"))),
        per_label=rng.choice((None, 2, 5)),
        rows=rng.choice((None, 4, 12)),
        splits=rng.choice((("train",), ("test", "train"), ("validation", "train"))),
        seed=rng.randrange(3),
    )


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("duplicates", ["exact", "normalized", "keep"])
def test_decisions_are_those_of_the_rules(published, duplicates):
    for seed in range(12):
        rng = random.Random(seed)
        units = [[row(rng) for _ in range(rng.randrange(60))] for _ in range(4)]
        if published:
            places = rng.choices(("train", "validation", "test"), k=len(units))
            units = [[{**one, "split": name} for one in unit] for name, unit in zip(places, units, strict=True)]
        split = Split(test=rng.choice(SHARES), validation=rng.choice(SHARES), seed=seed, stratify=rng.random() < 0.5)
        sampling = sampled(rng) if rng.random() < 0.8 else None
        ledger = committed(units)
        found = applied(ledger, place_rows(ledger, "labelled", duplicates, split, sampling))
        assert found == expected(units, duplicates, split, sampling), f"seed {seed}"
