"""The lineage of a row: its parents, its children, and its fate in every dataset of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from helpers import finished_stage, reject, write_dataset
from tilth.data.lineage import lineage, lineage_tree
from tilth.data.schema import Row, added, original
from tilth.errors import TilthError
from tilth.runs import Run


def finish_stage(run: Run, name: str, accepted: list[Row], rejected: list[Row]) -> None:
    """A finished data stage in the run's plan, with rejected rows."""
    dataset = write_dataset(finished_stage(run, name).store, accepted)
    if rejected:
        reject(dataset, rejected)


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    run = Run(tmp_path if request.param == "local" else f"memory://{tmp_path.name}")
    rows = [original(f"a{i:03d}", "train", {"text": f"where is card {i}", "label": "card"}) for i in range(50)]
    gone = {**original("b000", "train", {"text": "", "label": "card"}), "reason": "empty"}
    finish_stage(run, "data", rows, [gone])
    child = added(rows[7], "translate", 0, 11, "opus", text="where can card 7 be", meta={"similarity": 0.91})
    dropped = {**added(rows[7], "translate", 1, 11, "opus", text="cards"), "reason": "similarity: 0.31 is under 0.8"}
    grandchild = added(child, "eda", 0, 12, "eda", text="where card 7 can be")
    finish_stage(run, "augment", [*rows, child, grandchild], [dropped])
    return run


def test_a_grandchild_knows_its_parents_up_to_the_root(run: Run):
    found = lineage(run, "a007/translate.0/eda.0")
    assert [item["id"] for item in found["parents"]] == ["a007/translate.0", "a007"]
    assert found["root"] == "a007"
    assert (found["via"], found["seed"], found["model"]) == ("eda", 12, "eda")
    assert found["parents"][1]["row"] == {"text": "where is card 7", "label": "card"}


def test_children_come_with_their_fate(run: Run):
    children = {item["id"]: item for item in lineage(run, "a007")["children"]}
    assert children["a007/translate.0"]["fate"] == "accepted"
    assert children["a007/translate.1"]["fate"] == "filtered"
    assert children["a007/translate.1"]["reason"] == "similarity: 0.31 is under 0.8"


def test_every_dataset_of_the_plan_says_what_became_of_the_row(run: Run):
    assert [(s["stage"], s["fate"]) for s in lineage(run, "b000")["stages"]] == [
        ("data", "filtered"),
        ("augment", "absent"),
    ]
    in_augment = lineage(run, "a007/translate.0")["stages"][1]
    assert in_augment["meta"] == {"similarity": 0.91}


def test_the_beginning_of_an_id_is_enough_when_it_is_only_that_rows(run: Run):
    assert lineage(run, "b0")["id"] == "b000"
    assert lineage(run, "a007")["id"] == "a007"  # equal to one id, the beginning of its children's


def test_an_ambiguous_beginning_names_what_it_could_mean(run: Run):
    with pytest.raises(TilthError, match=r"a007/translate\.0, a007/translate\.1; give more"):
        lineage(run, "a007/t")


def test_an_unknown_id_is_answered_with_close_ones(run: Run):
    with pytest.raises(TilthError, match=r"no dataset of this run has a row 'a0077'; close ones: .*a007"):
        lineage(run, "a0077")


def test_a_parent_that_no_dataset_holds_is_said_to_be_missing(tmp_path: Path):
    run = Run(tmp_path)
    orphan = added(original("gone", "train", {"text": "x", "label": "y"}), "eda", 0, 1, "eda", text="z")
    finish_stage(run, "augment", [orphan], [])
    assert lineage(run, "gone/eda.0")["parents"] == [{"id": "gone", "row": {}, "missing": True}]


def test_the_answer_is_json_and_its_tree_shows_hostile_text_as_it_is(tmp_path: Path):
    run = Run(tmp_path)
    finish_stage(run, "data", [original("h", "train", {"text": "[red]not markup[/nope]", "label": "x"})], [])
    found = lineage(run, "h")
    assert json.loads(json.dumps(found)) == found
    shown = io.StringIO()
    Console(file=shown, width=200).print(lineage_tree(found))
    assert "[red]not markup[/nope]" in shown.getvalue()


def test_the_tree_runs_from_the_root_to_the_row(run: Run):
    shown = io.StringIO()
    Console(file=shown, width=200).print(lineage_tree(lineage(run, "a007/translate.0")))
    lines = shown.getvalue().splitlines()
    order = ["where is card 7", "where can card 7 be", "where card 7 can be", "data: absent", "augment: accepted"]
    places = [next(i for i, line in enumerate(lines) if text in line) for text in order]
    assert places == sorted(places)


def test_a_run_without_datasets_says_so(tmp_path: Path):
    run = Run(tmp_path)
    run.store.write_json("plan.json", [])
    with pytest.raises(TilthError, match="no rows at all"):
        lineage(run, "a")


def test_a_file_that_is_gone_is_named(tmp_path: Path):
    run = Run(tmp_path)
    finish_stage(run, "data", [original("h", "train", {"text": "a", "label": "x"})], [])
    next(tmp_path.rglob("*.parquet")).unlink()
    with pytest.raises(TilthError, match=r"parquet is missing; remove its stage"):
        lineage(run, "h")
