"""Decisions over all rows, held against the rules written out row by row."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

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
    rows = [row for table in ledger.tables() for row in placed.apply(table).to_pylist()]
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


# ids that other rows give rise to, and few texts, so that everything clashes
names = st.sampled_from(
    ["a", "b", "c", "a~1", "a~2", "a~3", "b~12", "a/x.0", "a~2/x.1", "b/x.0", "a/x.0/y.1", "é\n@1.2"]
)
names |= st.integers(0, 40).map(str)
texts = st.sampled_from(["one", "One!", "two", "TWO", "three"]) | st.integers(0, 60).map(str)
rows = st.builds(
    lambda name, text, label, bad: {
        **original(name, "", {"text": text, "label": label}),
        "reason": "quarantined/null: text" if bad else None,
    },
    names, texts, st.sampled_from("xyz"), st.integers(0, 9).map(lambda n: n == 0),
)  # fmt: skip
tables = st.lists(st.tuples(st.sampled_from(["train", "validation", "test"]), st.lists(rows, max_size=30)), max_size=4)
shares = st.sampled_from([0.0, 0.1, 0.25, 0.3])
samplings = st.builds(
    Sampling,
    labels=st.none() | st.just(("x", "z")),
    per_label=st.none() | st.integers(1, 5),
    rows=st.none() | st.integers(1, 20),
    splits=st.sampled_from([("train",), ("test", "train"), ("validation",)]),
    seed=st.integers(0, 2),
)


@settings(max_examples=100, deadline=None)
@given(
    tables=tables,
    published=st.booleans(),
    duplicates=st.sampled_from(["exact", "normalized", "keep"]),
    split=st.builds(Split, test=shares, validation=shares, seed=st.integers(0, 2), stratify=st.booleans()),
    sampling=st.none() | samplings,
)
def test_decisions_are_those_of_the_rules(tables, published, duplicates, split, sampling):
    units = [[{**row, "split": name if published else None} for row in found] for name, found in tables]
    ledger = committed(units)
    assert applied(ledger, place_rows(ledger, "labelled", duplicates, split, sampling)) == expected(
        units, duplicates, split, sampling
    )
