"""Sheets filled in by people: every fault is found at its line, and gates judge such rows like made ones."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

import tilth
from tilth.data.dataset import Dataset
from tilth.errors import QuarantineError, RecipeError

HEADER = "question,answer,topic,author\n"
CELLS = {
    "question": {"min_words": 3, "max_words": 8, "unique": True},
    "answer": {"min_words": 1},
    "topic": {"choices": ["card", "pin"], "required": False},
}
HERE = {"workers": 0}


def recipe(path: Path, row: str = "completion", **source: Any) -> dict[str, Any]:
    columns = {"prompt": "question", "completion": "answer"}
    given = {"kind": "sheet", "path": str(path), "columns": columns, "cells": CELLS, **source}
    stage = {"kind": "data", "row": row, "source": given, "max_quarantined": 1, "resources": HERE}
    return {"name": "filled", "stages": {"written": stage}}


def read(path: Path, text: str, **source: Any) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Accepted rows, and the reasons of the others by line."""
    path.write_text(text, encoding="utf-8")
    done = Dataset.open(tilth.run(recipe(path, **source), path.parent / "out")["written"])
    rejected = list(done.rejected_rows())
    assert all(row["meta"]["file"] == path.name for row in rejected)
    return list(done.rows()), {row["meta"]["line"]: row["reason"] for row in rejected}


def test_each_fault_is_quarantined_with_its_line(tmp_path):
    text = HEADER + (
        "Where is my card?,On its way.,card,ada\n"
        "Where is my card now?,,card,ada\n"
        "Where was my pin?,In the letter.,pin,\n"
        "Lost it,Call us.,card,ada\n"
        "Is this question far too long for the cell?,Yes.,card,ada\n"
        "What is my balance?,Ten.,money,ada\n"
        "where is MY card,It was sent.,card,grace\n"
        "Why is it blocked?,Three wrong tries.,,grace\n"
    )
    rows, reasons = read(tmp_path / "sheet.csv", text)
    assert [row["prompt"] for row in rows] == ["Where is my card?", "Why is it blocked?"]
    assert reasons == {
        3: "quarantined/empty: answer",
        4: "quarantined/empty: author",
        5: "quarantined/too_short: question has 2 words, 3 are wanted",
        6: "quarantined/too_long: question has 9 words, 8 are allowed",
        7: "quarantined/not_allowed: topic is 'money', not one of card, pin",
        8: "quarantined/duplicate: question says the same as line 2",
    }


def test_a_row_tells_all_its_faults_and_how_it_begins(tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_text(HEADER + "Hm,,money,\n" + "Where is my card?,Here.,card,ada\n", encoding="utf-8")
    done = Dataset.open(tilth.run(recipe(path), tmp_path / "out")["written"])
    [row] = done.rejected_rows()
    assert row["reason"] == (
        "quarantined/empty: author; too_short: question has 1 words, 3 are wanted; empty: answer; "
        "not_allowed: topic is 'money', not one of card, pin"
    )
    assert '"question": "Hm"' in row["meta"]["excerpt"]


def test_rows_that_nobody_filled_in_are_no_rows(tmp_path):
    rows, reasons = read(tmp_path / "sheet.csv", HEADER + "Where is my card?,Here.,card,ada\n,,,\n , ,,\n")
    assert len(rows) == 1
    assert reasons == {}


def test_the_author_is_kept(tmp_path):
    rows, _ = read(tmp_path / "sheet.csv", HEADER + "Where is my card?,Here.,card,ada\n", carry=["topic"])
    assert rows[0]["meta"] == {"file": "sheet.csv", "line": 2, "author": "ada", "topic": "card"}


def test_a_sheet_may_be_json_lines(tmp_path):
    lines = [
        {"question": "Where is my card?", "answer": "Here.", "topic": "card", "author": "ada"},
        {"question": "Where is my pin?", "answer": None, "author": "ada"},
        {"question": "", "answer": None},
        {"question": "Where is my card", "answer": "There.", "author": "ada"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "{broken\n"
    rows, reasons = read(tmp_path / "sheet.jsonl", text)
    assert [row["prompt"] for row in rows] == ["Where is my card?"]
    assert reasons[2] == "quarantined/empty: answer"
    assert reasons[4] == "quarantined/duplicate: question says the same as line 1"
    assert reasons[5].startswith("quarantined/malformed_json")
    assert set(reasons) == {2, 4, 5}


def test_too_many_faults_end_the_stage_with_their_names(tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_text(HEADER + "Where is my card?,,card,ada\nWhere is it now?,Here.,card,ada\n", encoding="utf-8")
    strict = recipe(path)
    strict["stages"]["written"]["max_quarantined"] = 0.2
    with pytest.raises(QuarantineError, match="1 empty"):
        tilth.run(strict, tmp_path / "out")


def test_misnamed_columns_are_found_though_every_row_has_a_fault(tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_text("question,answer,writer\nHm,,\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        tilth.load(recipe(path))
    assert "source.author: the source has no column 'author'" in str(caught.value)
    assert "source.cells.topic: the source has no column 'topic'" in str(caught.value)
    crossed = {"question": {"min_words": 5, "max_words": 2}}
    with pytest.raises(RecipeError, match="must not be above max_words: 5 and 2"):
        tilth.load(recipe(path, author="writer", cells=crossed))


def test_a_workbook_and_another_delimiter_are_known_for_what_they_are(tmp_path):
    (tmp_path / "sheet.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(RecipeError, match=r"source\.path: is a workbook, .* save it as CSV"):
        tilth.load(recipe(tmp_path / "sheet.xlsx"))
    for mark in (";", "\t"):
        (tmp_path / "sheet.csv").write_text((HEADER + "Where,Here,card,ada\n").replace(",", mark))
        with pytest.raises(RecipeError, match=r"no column 'question'; the header is one column, .* set delimiter to "):
            tilth.load(recipe(tmp_path / "sheet.csv", cells={}))
        tilth.load(recipe(tmp_path / "sheet.csv", cells={}, delimiter=mark))


def test_the_sheet_of_the_examples_holds_to_its_own_rules(root, tmp_path):
    before = Path.cwd()
    os.chdir(root)
    try:
        found = tilth.run("examples/recipes/sheet.yaml", tmp_path, "stages.gated.resources.workers=0")
    finally:
        os.chdir(before)
    assert found["written"].counts["accepted"] == found["gated"].counts["accepted"] == 10


def gated(folder: Path, rows: list[dict[str, Any]], *steps: dict[str, Any], row: str = "text", **gate: Any) -> Dataset:
    source = {"kind": "inline", "rows": rows}
    stages = {
        "given": {"kind": "data", "row": row, "source": source, "split": {"test": 0.3}, "resources": HERE},
        "gated": {"kind": "gate", "data": "@given", "steps": list(steps), "resources": HERE, **gate},
    }
    return Dataset.open(tilth.run({"name": "gated", "stages": stages}, folder)["gated"])


def test_a_gate_judges_what_augment_lets_through(tmp_path):
    rows = [{"text": "word " * n + f"{n}"} for n in range(1, 40)]
    length = {"kind": "length", "max_words": 20}
    done = gated(tmp_path / "gate", rows, length)
    train = [row for row in done.rows() if row["split"] == "train"]
    assert all(len(row["text"].split()) <= 20 for row in train)
    assert any(len(row["text"].split()) > 20 for row in done.rows()), "the test rows are not touched"
    assert {row["reason"].partition(":")[0] for row in done.rejected_rows()} == {"too_long"}
    counts = done.counts
    assert counts["inputs"] == counts["accepted"] + counts["filtered"]
    assert all(row["via"] is None and row["parent"] is None for row in done.rows())
    all_splits = gated(tmp_path / "all", rows, length, splits=["train", "test"])
    assert all(len(row["text"].split()) <= 20 for row in all_splits.rows())


def test_a_gate_judges_each_row_alone_and_gives_its_parent_back(tmp_path):
    source = {"kind": "inline", "rows": [{"text": f"He lost card {n}."} for n in range(12)]}
    stages = {
        "given": {"kind": "data", "row": "text", "source": source, "resources": HERE},
        "made": {"kind": "augment", "data": "@given", "steps": [{"kind": "counterfactual"}], "resources": HERE},
        "gated": {
            "kind": "gate", "data": "@made", "resources": HERE,
            # beside its parent every child would be too short
            "steps": [{"kind": "length", "min_ratio": 2.0, "max_ratio": 3.0}],
        },
    }  # fmt: skip
    found = tilth.run({"name": "made", "stages": stages}, tmp_path)
    before, after = Dataset.open(found["made"]), Dataset.open(found["gated"])
    assert list(after.rows()) == list(before.rows())
    assert len(after) == 24


def test_a_gate_finds_rows_that_people_wrote_twice_and_spares_the_test(shared, tmp_path):
    with open(shared / "data/banking77/test.csv", newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:60]
    rows = [{"text": text} for text in texts] + [{"text": f"{text} Please!"} for text in texts]
    done = gated(tmp_path, rows, {"kind": "near_duplicates", "threshold": 0.6})
    dropped = list(done.rejected_rows())
    assert len(dropped) > 20
    assert {row["split"] for row in dropped} == {"train"}
    assert all(row["reason"].startswith(("near_duplicate", "duplicate")) for row in dropped)


def test_a_gate_makes_nothing():
    steps = [{"kind": "length"}, {"kind": "eda"}]
    stages = {
        "given": {"kind": "data", "row": "text", "source": {"kind": "inline", "rows": [{"text": "a"}]}},
        "gated": {"kind": "gate", "data": "@given", "steps": steps},
    }
    with pytest.raises(RecipeError, match="eda makes rows, a gate judges those that are there"):
        tilth.load({"name": "wrong", "stages": stages})
