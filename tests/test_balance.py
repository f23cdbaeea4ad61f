"""Balance of labels and topics: what is too many goes, what is too few is told."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tilth.augment.balance import Balance
from tilth.data.schema import NEW, added, original
from tilth.data.transform import Inputs
from tilth.kinds import load_class


def rows():
    """Three originals of a, one of b, one test row of a; five added rows of a, two of b."""
    base = [original(f"a{i}", "train", {"text": "x", "label": "a"}) for i in range(3)]
    base += [original("b0", "train", {"text": "x", "label": "b"}), original("t", "test", {"text": "x", "label": "a"})]
    made = [added(base[i % 3], "v", i, 1, None) for i in range(5)] + [added(base[3], "v", i, 1, None) for i in range(2)]
    return [*base, *made]


def test_the_surplus_of_added_rows_goes_and_originals_stay():
    found = Balance(at_most=4).decide(rows(), Inputs())
    assert len(found) == 4
    assert set(found.values()) == {"surplus: 8 rows of 'a' > 4"}
    assert all("/v." in name for name in found)
    assert Balance(at_most=2).decide(rows(), Inputs()).keys() > found.keys(), "three originals are too many, and stay"
    assert Balance(at_most=8).decide(rows(), Inputs()) == {}


def test_which_rows_stay_depends_on_their_ids_and_the_seed_alone():
    first = Balance(at_most=5).decide(rows(), Inputs())
    shuffled = random.Random(0).sample(rows(), len(rows()))
    assert Balance(at_most=5).decide(iter(shuffled), Inputs()) == first
    draws = {frozenset(Balance(at_most=5, seed=seed).decide(rows(), Inputs())) for seed in range(10)}
    assert len(draws) > 1


def test_rows_of_earlier_rounds_stay_before_those_of_this_one():
    given = [{**row, NEW: row["id"] in ("a0/v.0", "a1/v.1")} for row in rows()]
    assert set(Balance(at_most=6).decide(given, Inputs())) == {"a0/v.0", "a1/v.1"}


def test_shortfall_tells_what_each_value_lacks():
    balance = Balance(at_least=5, values=("c",))
    assert balance.shortfall(rows()) == {"b": 2, "c": 5}
    assert balance.shortfall([row for row in rows() if row["via"] is None]) == {"a": 2, "b": 4, "c": 5}
    assert Balance(at_most=5).shortfall(rows()) == {}


def test_topics_are_balanced_by_what_was_recorded():
    topics = [{**row, "meta": {"topic": "money" if i % 3 else "travel"}} for i, row in enumerate(rows()[:-1])]
    topics.append(rows()[-1])
    balance = Balance(by="meta.topic", at_most=3, at_least=3, values=("sport",))
    counts = Counter(row["meta"]["topic"] for row in topics if row["split"] == "train" and row["meta"])
    found = balance.decide(topics, Inputs())
    assert counts["money"] - sum("'money'" in why for why in found.values()) == 3
    assert balance.shortfall(topics) == {"sport": 3}


def test_faults_are_found_before_anything_runs():
    assert Balance().check()[0].where == "at_most"
    assert Balance(at_most=1, at_least=2).check()[0].where == "at_least"
    assert Balance(at_most=1, values=("x",)).check()[0].where == "values"
    assert Balance(at_most=2, at_least=2).check() == []
    assert load_class("transform", "balance") is Balance


def test_rows_pass_a_unit_untouched():
    given = rows()
    assert Balance(at_most=1).load(Inputs(), {})(given) is given
    with pytest.raises(ValueError, match="at_most"):
        Balance(at_most=-1)
