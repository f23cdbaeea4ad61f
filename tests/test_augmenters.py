"""What every augmenter and filter is held to, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tilth
from tilth.augment.base import (
    Augmenter,
    Candidate,
    Filter,
    Sample,
    Variant,
    VariantsFunction,
    Verdict,
    VerdictsFunction,
)
from tilth.data.dataset import Dataset
from tilth.data.schema import original, to_table
from tilth.data.transform import Inputs
from tilth.errors import StageError

ROWS = [original(name, "train", {"text": f"row {name}"}) for name in "abc"]


class Odd(Augmenter):
    """Gives texts that no row may hold."""

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        return lambda samples: [["fine", " ", "a\ud800b", "nul\x00", Variant("", "mine")] for _ in samples]


class Lossy(Augmenter):
    """Forgets a row."""

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        def make(samples: list[Sample]) -> list[list[str]]:
            return [[sample.text] for sample in samples[1:]]

        return make


class Silent(Filter):
    """Gives no verdict."""

    def load_verdicts(self, inputs: Inputs, fitted: object) -> VerdictsFunction:
        def judge(candidates: list[object]) -> list[Verdict]:
            return []

        return judge


def test_a_text_that_no_row_may_hold_is_dropped_with_its_reason_and_can_be_stored() -> None:
    made = Odd().load(Inputs(), {})(ROWS[:1])[1:]
    reasons = [row["reason"] for row in made]
    assert reasons == [None, "empty", "bad_character: holds U+D800", "bad_character: holds U+0000", "mine"]
    assert to_table(made, "text").num_rows == 5


def test_a_wrong_number_of_answers_names_who_gave_it() -> None:
    with pytest.raises(StageError, match=r"Lossy gave variants of 2 rows when asked for 3"):
        Lossy().load(Inputs(), {})(ROWS)
    with pytest.raises(StageError, match=r"Silent gave 0 verdicts on 1 rows"):
        Silent().load(Inputs(), {})(Odd().load(Inputs(), {})(ROWS[:1]))


class Copies(Augmenter):
    """Says what another row says, of which row the text of each tells."""

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        return lambda samples: [[sample.text.partition(" not ")[2]] for sample in samples]


def chained(folder: Path, *augments: dict[str, Any]) -> dict[str, Any]:
    """Rows of two splits, all of them made by `templates`; then one stage `augment` after the other."""
    texts = {"train": ["one day not hot tea", "red car not two cats"], "test": ["hot tea", "two cats"]}
    for split, lines in texts.items():
        first = "z" if split == "test" else "a"
        rows = [{"id": f"{first}{n}", "text": text, "label": "x"} for n, text in enumerate(lines)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {split: {"kind": "jsonl", "path": str(folder / f"{split}.jsonl")} for split in texts}
    sources = {split: {**source, "columns": {"id": "id"}} for split, source in sources.items()}
    here = {"resources": {"workers": 0}}
    method = {"kind": "templates", "templates": [{"name": "t", "jinja": "{{text}} ||| {{label}}"}]}
    stages: dict[str, Any] = {
        "data": {"kind": "data", "row": "labelled", "sources": sources, **here},
        "made": {"kind": "generate", "data": "@data", "method": method, **here},
    }
    for number, fields in enumerate(augments):
        data = f"@more{number - 1}" if number else "@made"
        stages[f"more{number}"] = {"kind": "augment", "data": data, **fields, **here}
    return {"name": "chained", "stages": stages}


def test_what_a_stage_is_given_stands_before_what_it_makes_whoever_made_it(tmp_path: Path) -> None:
    near = {"kind": "near_duplicates", "field": "prompt"}
    steps = [{"kind": "test_augmenters:Copies", "field": "prompt"}, near]
    done = Dataset.open(tilth.run(chained(tmp_path, {"steps": steps}), tmp_path / "out")["more0"])
    assert done.splits() == {"train": 2, "test": 2}, "no row of the test came into train"
    assert {row["reason"] for row in done.rejected_rows()} == {f"duplicate: of z{n}/templates.0 (test)" for n in (0, 1)}


def test_an_augmenter_that_made_rows_before_needs_another_name(tmp_path: Path) -> None:
    step = {"kind": "test_augmenters:Copies", "field": "prompt"}
    twice = {"steps": [step]}
    with pytest.raises(StageError, match=r"steps\.0 .*@more0 already holds rows by 'copies'; set its name"):
        tilth.run(chained(tmp_path, twice, twice), tmp_path / "out")
    named = {"steps": [{**step, "name": "again"}]}
    done = Dataset.open(tilth.run(chained(tmp_path, twice, named), tmp_path / "out")["more1"])
    assert len({row["id"] for row in done.rows()}) == len(done)


class Rewritten(Augmenter):
    """Puts words before a context, and leaves the last ones of another out."""

    field: str = "context"

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        return lambda samples: [[f"As is known, {item.text}", item.text.partition(" in")[0]] for item in samples]


class Masked(Filter):
    """Masks a name."""

    def load_verdicts(self, inputs: Inputs, fitted: object) -> VerdictsFunction:
        def judge(candidates: list[Candidate]) -> list[Verdict]:
            return [Verdict(changes={"context": item.row["context"].replace("Ann", "<NAME>")}) for item in candidates]

        return judge


def test_answers_stand_where_a_new_context_has_them_or_the_row_is_dropped() -> None:
    answers = [{"text": "Rome", "start": 13}]
    given = original("a", "train", {"question": "Where?", "context": "Ann lives in Rome", "answers": answers})
    asked, moved, lost = Rewritten().load(Inputs(), {})([given])
    assert asked == given
    assert (moved["reason"], moved["answers"]) == (None, [{"text": "Rome", "start": 26}])
    assert lost["reason"] == "answer_lost: the new context does not hold it"
    none = {**given, "answers": []}
    assert [row["reason"] for row in Rewritten().load(Inputs(), {})([none])] == [None] * 3

    _, masked, _ = Masked(field="context").load(Inputs(), {})([given, moved, lost])
    assert (masked["reason"], masked["answers"]) == (None, [{"text": "Rome", "start": 29}])
    [gone] = Masked(field="context").load(Inputs(), {})([{**moved, "answers": [{"text": "Ann", "start": 0}]}])
    assert gone["reason"] == "answer_lost: the new context does not hold it"
