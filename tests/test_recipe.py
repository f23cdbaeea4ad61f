"""Recipes: everything wrong is said at once, with line and way out, before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import ClassVar

import pytest
from pydantic import Field

from tilth.config import Component, DatasetRef, ModelRef
from tilth.errors import Problem, RecipeError
from tilth.recipe import Recipe, Stage, load


class Rate(Component):
    value: float = Field(1e-4, gt=0, description="per step")
    shape: str = Field("linear", description="schedule")


class Make(Stage):
    """Produces a dataset."""

    produces: ClassVar[str] = "dataset"
    texts: tuple[str, ...] = Field(("a",), description="rows")
    labels: dict[str, int] = Field(default_factory=dict, description="by name")
    weight: float | str = Field(1.0, description="either")


class Fit(Stage):
    """Produces a model."""

    produces: ClassVar[str] = "model"
    data: DatasetRef = Field(description="rows")
    base: ModelRef = Field("org/base", description="start")
    rate: Rate = Field(default_factory=Rate, description="learning rate")
    batch: int = Field(8, ge=1, description="rows at once")
    workers: int = Field(1, ge=1, description="processes")

    def check(self):
        if self.batch % self.workers:
            return [Problem("batch", f"{self.batch} is not divisible by {self.workers} workers", "use 6")]
        return []


MAKE, FIT = "test_recipe:Make", "test_recipe:Fit"
GOOD = f"""\
name: good
stages:
  fit:
    kind: {FIT}
    data: "@rows"
    rate: {{value: 1e-3}}
  rows:
    kind: {MAKE}
    texts: [no, 1e-4x, "010"]
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "r.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def faults(source, *overrides):
    with pytest.raises(RecipeError) as caught:
        load(source, overrides)
    return {problem.where: str(problem) for problem in caught.value.problems}


def one(stage, **fields):
    """A recipe with one sound dataset stage beside `stage`."""
    return {"name": "x", "stages": {"rows": {"kind": MAKE}, "fit": {"kind": FIT, "data": "@rows", **fields}, **stage}}


def test_yaml_and_python_make_the_same_recipe_and_it_survives_writing(written):
    built = Recipe(
        name="good",
        stages={"fit": Fit(data="@rows", rate=Rate(value=1e-3)), "rows": Make(texts=("no", "1e-4x", "010"))},
    )
    recipe = load(written(GOOD))
    assert recipe == built == load(built)
    assert load(written(recipe.dump_yaml())) == recipe
    assert recipe.order() == ["rows", "fit"]


def test_texts_that_look_like_something_else_survive_writing(written):
    texts = ["1e-4", "no", "010", "", "~", "2024-01-01", "- a", "a: b", "ü\u2028", "x" * 300 + " y"]
    recipe = Recipe(name="x", description="1e5", stages={"rows": Make(texts=tuple(texts), labels={"on": 1})})
    assert load(written(recipe.dump_yaml())) == recipe


def test_every_fault_is_listed_with_its_line(written):
    text = f"""\
name: bad name
stages:
  fit:
    kind: {FIT}
    data: "@row"
    batch: 0
    rat: 1
    rate: {{valu: 1, value: -1.0}}
  more:
    kind: {FIT}
    data: "@lost"
    batch: 4
    workers: 3
  rows:
    kind: test_recipe:Mak
  sort:
    kind: augmet
"""
    path = written(text)
    found = faults(path)
    lines = {where.removeprefix(f"{path}:").replace(" ", ""): text for where, text in found.items()}
    numbers = [int(where.partition(":")[0]) for where in lines]
    assert numbers == sorted(numbers)
    assert set(lines) == {
        "1:name", "5:stages.fit.data", "6:stages.fit.batch", "7:stages.fit.rat", "8:stages.fit.rate.value",
        "8:stages.fit.rate.valu", "11:stages.more.data", "12:stages.more.batch", "14:stages.rows", "16:stages.sort",
    }  # fmt: skip
    assert lines["6:stages.fit.batch"].endswith("must be greater than or equal to 1, not 0")
    assert lines["7:stages.fit.rat"].endswith('unknown field; did you mean "rate"?')
    assert lines["8:stages.fit.rate.valu"].endswith('unknown field; did you mean "value"?')
    assert lines["12:stages.more.batch"].endswith("4 is not divisible by 3 workers; use 6")
    assert "module 'test_recipe' has no 'Mak'" in lines["14:stages.rows"]
    assert lines["16:stages.sort"].endswith('did you mean "augment"?')


def test_what_is_sound_in_a_faulty_stage_is_checked_too(written, tmp_path):
    (tmp_path / "rows.csv").write_text("text,category\na,b\n")
    found = faults({"name": "x", "stages": {
        "rows": {
            "kind": "data", "row": "labelled", "split": {"test": 1.5},
            "source": {"kind": "csv", "path": str(tmp_path / "rows.csv"), "columns": {"label": "categry"}},
        },
        "more": {"kind": "augment", "data": "@rows", "steps": [
            {"kind": "contextual", "proposer": {"kind": "masked_lm", "model": "@wods"}}, {"kind": "eda", "variant": 2},
        ]},
    }})  # fmt: skip
    assert set(found) == {
        "stages.rows.split.test", "stages.rows.source.columns.label",
        "stages.more.steps.0.proposer.model", "stages.more.steps.1.variant",
    }  # fmt: skip
    assert found["stages.rows.source.columns.label"].endswith('did you mean "category"?')
    assert found["stages.more.steps.0.proposer.model"].endswith("there are: @more, @rows")


@pytest.mark.parametrize(
    ("given", "end"),
    [("labeled", "not 'labeled'; did you mean \"labelled\"?"), ("picture", "not 'picture'"), (3, "not 3")],
)
def test_a_choice_that_is_none_says_which_was_meant(written, tmp_path, given, end):
    source = {"kind": "inline", "rows": [{"text": "a", "label": "b"}]}
    [said] = faults({"name": "x", "stages": {"rows": {"kind": "data", "row": given, "source": source}}}).values()
    assert "must be 'text', 'labelled'" in said
    assert said.endswith(end)


def test_a_missing_field_is_named(written):
    assert faults({"stages": {"fit": {"kind": FIT}}}) == {
        "name": "name: is missing; it has no default",
        "stages.fit.data": "stages.fit.data: is missing; it has no default",
    }


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("@row", "no stage is named 'row'; did you mean \"@rows\"?"),
        ("@zzz", "no stage is named 'zzz'; there are: @fit, @rows, @second"),
        ("@second", "needs a dataset, but @second (test_recipe:Fit) produces a model; stages that fit: @rows"),
    ],
)
def test_a_reference_must_name_a_stage_that_produces_what_is_needed(data, says):
    found = faults(one({"second": {"kind": FIT, "data": "@rows"}}, data=data))
    assert found == {"stages.fit.data": f"stages.fit.data: {says}"}


def test_a_circle_of_references_is_shown():
    stages = {"a": {"kind": FIT, "data": "@rows", "base": "@b"}, "b": {"kind": FIT, "data": "@rows", "base": "@a"}}
    found = faults(one(stages))
    assert set(found) == {"stages"}
    assert "in a circle: " in found["stages"]
    assert faults(one({"a": {"kind": FIT, "data": "@rows", "base": "@a"}})).keys() == {"stages"}


@pytest.mark.parametrize("name", ["../up", "a/b", "a.b", "", "-x", "a b"])
def test_a_stage_name_is_a_directory_and_a_step_of_a_path(name):
    assert f"stages.{name}" in faults({"name": "x", "stages": {name: {"kind": MAKE}}})


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({}, "needs a kind; one of: "),
        ("data", "needs a kind; write {kind: data}"),
        ({"kind": "length"}, "no stage of kind 'length' (that is a transform)"),
        ({"kind": "no_such:Thing"}, "needs module 'no_such', which is not installed"),
        ({"kind": "test_recipe:Rate"}, "test_recipe:Rate is not a stage"),
        ({"kind": ".relative:Thing"}, "no stage of kind '.relative:Thing'"),
    ],
)
def test_a_stage_without_a_good_kind(stage, says):
    assert says in faults({"name": "x", "stages": {"a": stage}})["stages.a"]


def test_a_module_that_cannot_be_imported_is_named_with_the_place_of_its_fault(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unfinished_one.py").write_text("class (\n")
    (tmp_path / "unfinished_two.py").write_text("x = 1\ny = 1 / 0\n")
    found = faults({"name": "x", "stages": {n: {"kind": f"unfinished_{n}:Thing"} for n in ("one", "two")}})
    assert "unfinished_one.py, line 1" in found["stages.one"]
    assert found["stages.two"].endswith(f"division by zero ({tmp_path / 'unfinished_two.py'}, line 2)")


def test_a_union_is_one_fault():
    found = faults({"name": "x", "stages": {"rows": {"kind": MAKE, "weight": [1]}}})
    assert found == {"stages.rows.weight": "stages.rows.weight: must be a valid number or a valid string, not (1,)"}


@pytest.mark.parametrize("source", [{"name": "x", "stages": []}, {"name": "x"}, {"name": "x", "stages": None}, {1: 2}])
def test_shapes_that_are_no_recipe(source):
    assert faults(source)


def test_overrides_are_typed_and_checked_again(written):
    path = written(GOOD)
    recipe = load(path, ["stages.fit.rate.value=2e-5", "stages.fit.batch=6", "stages.fit.workers=3", "name=other"])
    assert recipe.stages["fit"] == Fit(data="@rows", rate=Rate(value=2e-5), batch=6, workers=3)
    assert recipe.name == "other"
    assert load(recipe, ["stages.rows.texts.1=new"]).stages["rows"].texts == ("no", "new", "010")
    assert load(recipe, ["stages.rows.labels.first=1"]).stages["rows"].labels == {"first": 1}
    assert load(recipe, ["stages.rows.texts=[x, y=z]"]).stages["rows"].texts == ("x", "y=z")
    assert load(recipe).stages["rows"].texts == ("no", "1e-4x", "010"), "the object itself stays"


def test_an_override_may_add_a_stage_and_fill_a_null():
    recipe = {"name": "x", "stages": {"rows": {"kind": MAKE, "labels": None}}}
    again = load(recipe, ["stages.rows.labels.a=1", f"stages.more={{kind: '{MAKE}'}}"])
    assert again.stages == {"rows": Make(labels={"a": 1}), "more": Make()}
    assert recipe["stages"]["rows"]["labels"] is None, "the given mapping stays"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.fit.batch=0", "override stages.fit.batch: must be greater than or equal to 1, not 0"),
        ("stages.fit.batch=big", "override stages.fit.batch: must be a valid integer, not 'big'"),
        ("stages.fit.bach=4", 'override stages.fit.bach: unknown field; did you mean "batch"?'),
        ("stages.rows.texts.3=x", "stages.rows.texts.3=x: has items 0 to 2, not '3'"),
        ("stages.rows.texts.x=x", "has items 0 to 2, not 'x'"),
        ("stages.fit.kind.x=1", "which has no keys"),
        ("name.first.second=1", "is 'good', no mapping"),
        ("stages.fti.batch=4", "stages.fti.batch=4: no stage is named 'fti'; did you mean \"fit\"?"),
        ("stges.fit.batch=4", 'override stges: unknown field; did you mean "stages"?'),
        (f"stages.fit.kind={FIT}x", "override stages.fit: module 'test_recipe' has no 'Fitx'"),
        ("batch", "is not an override; write a.b.c=value"),
        ("stages..batch=1", "is not an override"),
        ("=1", "is not an override"),
    ],
)
def test_an_override_that_does_not_hold_is_named(written, override, says):
    found = faults(written(GOOD), override)
    assert any(says in text for text in found.values()), found


def test_every_fault_of_overrides_and_recipe_is_listed_at_once(written):
    found = faults(written(GOOD), "batch", "stages.fit.batch=0", "stages.fti.batch=1", "stages.rows.texts.7=x")
    assert set(found) == {"batch", "override stages.fit.batch", "stages.fti.batch=1", "stages.rows.texts.7=x"}


def test_a_file_that_cannot_be_read(tmp_path):
    assert "cannot be read" in str(faults(tmp_path / "none.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    assert "cannot be read" in str(faults(tmp_path / "latin.yaml"))


def test_the_order_of_stages_is_the_same_in_every_process(tmp_path, root):
    stages = ", ".join(f"s{n}: {{kind: '{MAKE}'}}" for n in range(9))
    inputs = "".join(f", in{n}: '@s{8 - n}'" for n in range(9))
    (tmp_path / "many.py").write_text(
        "from tilth.config import DatasetRef\nfrom tilth.recipe import Stage\n"
        "class Many(Stage):\n" + "".join(f"    in{n}: DatasetRef\n" for n in range(9)),
        encoding="utf-8",
    )
    (tmp_path / "r.yaml").write_text(f"name: x\nstages: {{all: {{kind: 'many:Many'{inputs}}}, {stages}}}", "utf-8")
    code = "from tilth.recipe import load; print(load('r.yaml').order())"
    orders = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root / "tests"), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert len(orders) == 1
