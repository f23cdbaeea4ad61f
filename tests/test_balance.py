"""Balance of labels and topics: what is too many goes, what is too few is told."""

from __future__ import annotations

import random
from collections import Counter
from typing import ClassVar

import pytest

from scripted import problems, run
from tilth.augment.balance import Balance
from tilth.augment.base import KEEP, Filter, Verdict
from tilth.data.schema import NEW, added, original
from tilth.data.transform import Inputs
from tilth.generate.echo import Echo
from tilth.kinds import load_class
from tilth.report.generation import ended


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


TEXTS = [{"text": f"{label} question {n}", "label": label} for label, n in (("pay", 0), ("pay", 1), ("card", 0))]
GRID = {
    "kind": "grid",
    "row_type": "labelled",
    "axes": {"label": ["pay", "card", "cash"], "mood": ["calm", "angry"]},
    "template": "{{ mood }} customer asks about {{ label }}",
}


def topped_up(folder, steps=(), at_least=6, **fields):
    folder.mkdir(exist_ok=True)
    balance = {"kind": "balance", "at_least": at_least, "values": ["cash"]}
    fields = {"keep_data": True, "budget": {"max_rows": 500}, **fields}
    return run(folder, "labelled", TEXTS, GRID, steps=[*steps, balance], round_rows=8, **fields)


def by_label(dataset):
    return Counter(row["label"] for row in dataset.rows())


def test_rounds_go_on_until_every_label_has_its_rows(tmp_path):
    artifact, done = topped_up(tmp_path)
    assert by_label(done) == {"pay": 6, "card": 6, "cash": 6}
    assert artifact.detail["ended"] == "balance: no value is short"
    assert artifact.detail["short"] == {}
    assert [item["short"] for item in artifact.detail["rounds"]] == [15, 7]


def test_rows_that_are_not_passed_on_do_not_count_and_their_values_are_topped_up(tmp_path):
    artifact, done = topped_up(tmp_path, keep_data=False)
    assert by_label(done) == {"pay": 6, "card": 6, "cash": 6}
    assert all(row["via"] == "grid" for row in done.rows())
    assert artifact.detail["ended"] == "balance: no value is short"
    _, most = run(
        tmp_path, "labelled", TEXTS, GRID, steps=[{"kind": "balance", "at_most": 2}], budget={"max_rows": 24},
        round_rows=8, generator={"kind": "echo"},
    )  # fmt: skip
    assert by_label(most) == {"pay": 2, "card": 2, "cash": 2}


def test_what_the_gates_drop_is_made_up_for(tmp_path):
    """Half of the answers are cut off and so dropped: labels that lost more rows are asked for more."""
    artifact, done = topped_up(tmp_path, generator={"kind": "echo", "truncated": 0.5})
    assert artifact.counts["filtered"] > 3
    assert min(by_label(done).values()) >= 6
    assert artifact.detail["short"] == {}


def test_the_target_is_the_least_where_a_balance_wants_more(tmp_path):
    artifact, done = topped_up(tmp_path, target=4)
    assert by_label(done) == {"pay": 6, "card": 6, "cash": 6}
    assert artifact.detail["ended"] == "target: 4 rows"
    more, done = topped_up(tmp_path / "more", target=20)
    assert more.counts["accepted"] >= 20
    assert min(by_label(done).values()) >= 6


def test_a_budget_that_ends_first_is_said_with_what_is_short(tmp_path, capsys):
    artifact, done = topped_up(tmp_path, budget={"max_rows": 8})
    short = artifact.detail["short"]
    assert artifact.detail["ended"] == "max_rows: 8 of 8"
    assert short == {label: 6 - n for label, n in by_label(done).items() if n < 6}
    assert artifact.metrics["short"] == sum(short.values()) == 7
    assert "made: ended with max_rows: 8 of 8; 7 rows short of the balance: " in capsys.readouterr().err
    assert "7 rows short of the balance: " in ended(artifact.detail)


def test_a_label_whose_rows_all_fail_ends_the_stage_when_no_round_brings_it_nearer(tmp_path):
    gate = {"kind": "test_balance:NoCash"}
    artifact, done = topped_up(tmp_path, steps=[gate], budget={"max_rows": 10_000}, target=3)
    assert by_label(done) == {"pay": 6, "card": 6}
    assert artifact.detail["ended"].startswith("barren: ")
    assert artifact.detail["short"] == {"cash": 6}


class NoCash(Filter):
    """Lets no text on cash through."""

    def load_verdicts(self, inputs, fitted):
        return lambda candidates: [Verdict("cash: no") if c.label == "cash" else KEEP for c in candidates]


def test_a_method_that_does_not_heed_the_balance_ends_too(tmp_path):
    balance = {"kind": "balance", "by": "meta.topic", "at_least": 5, "values": ["rain"]}
    prompts = [{"prompt": f"Explain number {n} in a few plain words.", "completion": "…"} for n in range(8)]
    artifact, _ = run(
        tmp_path, "completion", prompts, {"kind": "self_instruct"}, steps=[balance], target=10, round_rows=16
    )
    assert artifact.detail["ended"] == "barren: in the last 3 rounds the balance came no nearer"
    assert artifact.detail["short"] == {"rain": 5}
    assert artifact.counts["accepted"] >= 10


class Stopping(Echo):
    """Is interrupted at the call that brings `left` to nothing."""

    left: ClassVar[list[int]] = [0]

    def load(self, inputs):
        answer = super().load(inputs)

        def ask(prompts):
            self.left[0] -= 1
            if self.left[0] == 0:
                raise KeyboardInterrupt
            return answer(prompts)

        return ask


@pytest.mark.parametrize("calls", [1, 2])
def test_a_resumed_stage_tops_up_the_same_rows(calls, tmp_path):
    stopping = {"kind": "test_balance:Stopping"}
    Stopping.left[0] = 0
    _, whole = topped_up(tmp_path / "whole", generator=stopping)
    Stopping.left[0] = calls
    with pytest.raises(KeyboardInterrupt):
        topped_up(tmp_path / "cut", generator=stopping)
    _, again = topped_up(tmp_path / "cut", generator=stopping)
    assert list(again.rows()) == list(whole.rows())


def test_a_column_that_the_rows_lack_is_found_before_anything_runs(tmp_path):
    found = problems(tmp_path, "labelled", TEXTS, {**GRID, "row_type": "completion"}, steps=[
        {"kind": "balance", "at_least": 3}, {"kind": "unique", "by": ["meta.x", "sku"]},
    ], target=3)  # fmt: skip
    assert set(found) == {"stages.made.steps.0.by", "stages.made.steps.1.by.1"}
