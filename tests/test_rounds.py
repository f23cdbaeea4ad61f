"""Rounds: one stage after another of the same method, targets, and what a stage counts of what it spent."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import tilth
from scripted import recipe
from tilth.data.dataset import Dataset
from tilth.errors import StageError

TASKS = [f"Name {n} rivers of Europe and the seas that they reach, in a list." for n in range(12)]
PROMPTS = [{"prompt": text, "completion": "…"} for text in TASKS]


def twice(folder: Any, method: dict[str, Any], **fields: Any) -> tuple[Dataset, Dataset]:
    """What a method makes of prompts, and what it makes of that in a second stage."""
    made = recipe(folder, "completion", PROMPTS, method, keep_data=True, **fields)
    first = made["stages"]["made"]
    made["stages"]["again"] = {**first, "data": "@made"}
    done = tilth.run(made, folder / "out")
    return Dataset.open(done["made"]), Dataset.open(done["again"])


@pytest.mark.parametrize("steps", [[], [{"kind": "length", "field": "prompt", "min_words": 1}]])
@pytest.mark.parametrize("kind", ["self_instruct", "evol_instruct"])
def test_a_pool_method_after_itself_makes_no_id_twice_and_loses_no_row(kind, steps, tmp_path):
    one, two = twice(tmp_path, {"kind": kind}, target=8, steps=steps, round_rows=8)
    assert len(one) == 20
    assert len(two) == 28
    assert len({row["id"] for row in two.rows()}) == 28
    made = [row for row in two.rows() if row["id"].startswith(f"{kind}~2-")]
    assert len(made) == 8
    assert {row["via"] for row in made} == {kind}
    assert two.counts["inputs"] == two.counts["accepted"] + two.counts["filtered"] + two.counts["quarantined"]


def test_a_method_over_rows_after_itself_needs_another_name(tmp_path):
    method = {"kind": "test_generate:Titles"}
    with pytest.raises(StageError, match=r"@made already holds rows by 'titles' .*set the name of this method"):
        twice(tmp_path, method)
    made = recipe(tmp_path, "completion", PROMPTS, method, keep_data=True)
    made["stages"]["again"] = {**made["stages"]["made"], "data": "@made", "method": {**method, "name": "headings"}}
    again = Dataset.open(tilth.run(made, tmp_path / "out")["again"])
    assert Counter(row["via"] for row in again.rows()) == {None: 12, "titles": 12, "headings": 24}
    assert len({row["id"] for row in again.rows()}) == 48
