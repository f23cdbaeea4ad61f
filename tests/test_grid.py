"""Grids: every combination as often as any other, and first what is short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from pydantic import Field

from scripted import problems, run, script, texts
from tilth.data.schema import Row
from tilth.data.transform import Inputs, RowsFunction, Transform
from tilth.errors import StageError
from tilth.generate.method import Method, Pool

AXES = {"topic": ["rain", "soil", "seed"], "level": ["easy", "hard"], "mood": ["calm", "angry"]}


@script
def writing(text, prompt):
    if "broken" in text:
        return "  "
    return f'"{text} {prompt.seed}"' if "exactly" in text else f"{prompt.seed} {text}"


def test_every_combination_comes_as_often_as_any_other(tmp_path):
    _, done = run(
        tmp_path, "text", texts("x"), {"kind": "grid", "axes": AXES}, generator="writing", target=36, round_rows=7
    )
    found = Counter(tuple(row["meta"]["axes"].items()) for row in done.rows())
    assert len(found) == 12
    assert set(found.values()) == {3}
    row = next(done.rows())
    assert all(f"- {name}: {value}" in row["prompt"] for name, value in row["meta"]["axes"].items())
    assert row["completion"].endswith(row["prompt"])


def test_a_combination_that_always_fails_keeps_no_other_from_its_share(tmp_path):
    axes = {"topic": ["rain", "broken", "soil"], "level": ["easy", "hard"]}
    _, done = run(
        tmp_path, "text", texts("x"), {"kind": "grid", "axes": axes}, generator="writing", target=40, round_rows=6
    )
    found = Counter(tuple(row["meta"]["axes"].values()) for row in done.rows())
    assert len(found) == 4
    assert max(found.values()) - min(found.values()) <= 1
    assert {row["reason"] for row in done.rejected_rows()} <= {
        "empty: the answer says nothing",
        "surplus: beyond the target of 40",
    }


def planned(axes, accepted=(), wanted=64, **short):
    """The combinations that a round asks for."""
    grid = Method.model_validate({"kind": "grid", "axes": axes})
    rows = [{"meta": {"axes": cell}} for cell in accepted]
    return [ask["meta"]["axes"] for ask in grid.plan(0, Pool([], rows, short), wanted)]


def values(cells):
    return {tuple(cell.items()) for cell in cells}


@pytest.mark.parametrize("size", [9, 90])
def test_a_grid_of_more_combinations_than_can_be_listed_is_drawn_from(size):
    axes = {f"axis {n}": [f"{n}.{value}" for value in range(10)] for n in range(size)}
    cells = planned(axes, **{"3.7": 9})
    assert len(values(cells)) == 64
    assert all(list(cell) == list(axes) for cell in cells)
    assert all(cell["axis 3"] == "3.7" for cell in cells[:9])
    assert len({cell["axis 8"] for cell in cells}) == 10


def test_no_combination_is_asked_for_again_while_others_have_no_row():
    axes = {name: [f"{name}{value}" for value in range(10)] for name in "abc"}
    accepted = []
    for _ in range(10):
        accepted += planned(axes, accepted, 100)
    assert len(values(accepted)) == len(accepted) == 1000
    assert len(values(planned(axes, accepted, 100))) == 100


def test_a_value_of_several_axes_is_found_on_each_of_them():
    axes = {"skin": ["dry", "hot", "hot"], "weather": ["cold", "hot", "wet"], "n": [str(n) for n in range(40)]}
    for wanted in (16, 160):  # drawn, and all that there are
        cells = planned(axes, wanted=wanted, hot=wanted)
        assert len(values(cells)) == wanted
        assert {(cell["skin"], cell["weather"]) for cell in cells} == {
            ("hot", "cold"), ("hot", "hot"), ("hot", "wet"), ("dry", "hot")
        }  # fmt: skip


class Wanted(Transform):
    """Wants so many rows of each label."""

    labels: dict[str, int] = Field(description="Rows wanted by label.")

    def load(self, inputs: Inputs, fitted: Any) -> RowsFunction:
        return lambda rows: rows

    def shortfall(self, rows: Iterable[Row]) -> dict[str, int]:
        counts = Counter(row["label"] for row in rows)
        return {label: n - counts[label] for label, n in self.labels.items() if n > counts[label]}


LABELLED = {
    "kind": "grid",
    "row_type": "labelled",
    "axes": {"label": ["pay", "card"], "mood": ["calm", "angry"]},
    "template": "exactly: a {{ mood }} text on {{ label }} like {{ demonstrations | join(', ') }}",
    "demonstrations": 1,
}
QUESTIONS = [{"text": f"{label} {n}", "label": label} for label in ("pay", "card") for n in range(3)]


def test_labels_that_are_short_are_asked_for_first_with_examples_of_their_own(tmp_path):
    wanted = {"kind": "test_grid:Wanted", "labels": {"pay": 13, "card": 5}}
    _, done = run(
        tmp_path, "labelled", QUESTIONS, LABELLED, generator="writing", target=12, steps=[wanted]
    )  # three of each are there: ten and two are short
    assert Counter(row["label"] for row in done.rows()) == {"pay": 10, "card": 2}
    for row in done.rows():
        words = row["text"].split()
        assert row["label"] == row["meta"]["axes"]["label"] == words[5] == words[7]
        assert words[2] == row["meta"]["axes"]["mood"]


def test_a_shortfall_that_no_axis_can_fill_ends_the_stage_at_once(tmp_path):
    wanted = {"kind": "test_grid:Wanted", "labels": {"lost": 2}}
    with pytest.raises(StageError, match=r"2 rows with 'lost' are wanted, but no axis"):
        run(tmp_path, "labelled", QUESTIONS, LABELLED, generator="writing", target=12, steps=[wanted])


def test_the_texts_of_the_data_can_be_an_axis(tmp_path):
    personas = texts("a beekeeper", "a nurse on nights", "a tram driver")
    method = {"kind": "grid", "axes": {"topic": ["percentages"]}, "data_axis": "persona", "row_type": "text"}
    _, done = run(tmp_path, "text", personas, method, generator="writing", target=6)
    found = Counter(row["meta"]["axes"]["persona"] for row in done.rows())
    assert found == dict.fromkeys([row["text"] for row in personas], 2)


def test_an_axis_may_have_any_name_that_is_not_taken(tmp_path):
    grid = {"kind": "grid", "axes": {"template": ["letter", "list"]}, "template": "Write a {{ template }}."}
    _, done = run(tmp_path, "text", texts("x"), grid, target=4)
    assert Counter(row["meta"]["axes"]["template"] for row in done.rows()) == {"letter": 2, "list": 2}


def test_faults_of_a_grid_are_found_before_it_runs(tmp_path):
    method = {"kind": "grid", "axes": {"topic": ["rain"]}, "row_type": "labelled", "template": "on {{ topics }}"}
    found = problems(tmp_path, "text", texts("x"), method, target=3)
    assert set(found) == {"axes", "template"}
    assert "topics" in found["template"].what
    assert set(problems(tmp_path, "text", texts("x"), {"kind": "grid", "axes": {}}, target=3)) == {"axes"}


def test_a_template_has_no_way_out_of_its_sandbox(tmp_path):
    method = {"kind": "grid", "axes": {"topic": ["rain"]}, "template": "{{ topic.__class__.__mro__ }}"}
    with pytest.raises(StageError, match=r"RenderError: SecurityError"):
        run(tmp_path, "text", texts("x"), method, generator="writing", target=3)
