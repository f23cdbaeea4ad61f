"""Recipes as YAML: scalars, lines, keys that stand twice, and the way back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth import yaml12
from tilth.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("2E5", 2e5), (".5", 0.5), ("1.", 1.0), ("-3.5e+2", -350.0), ("16", 16), ("1_000", 1000),
        ("010", 10), ("08", 8), ("no", "no"), ("yes", "yes"), ("off", "off"), ("y", "y"), ("true", True),
        ("False", False), ("2024-01-31", "2024-01-31"), ("1:30", "1:30"), ("0x1f", "0x1f"), ("~", None), ("null", None),
        ("'1e-4'", "1e-4"), ("@data", "@data"),
    ],
)  # fmt: skip
def test_scalars_are_what_people_mean(text, value):
    text = f"'{text}'" if text.startswith("@") else text
    found = yaml12.parse(f"a: {text}")[0]["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), (" 16 ", 16), ("[a, 2]", ["a", 2]), ("{kind: x}", {"kind": "x"}), ("true", True),
        ("null", None), ("", None), ("'16'", "16"), ('"# Title"', "# Title"), ("@a", "@a"), ("a: [", "a: ["),
        (" just text ", "just text"),
    ],
)  # fmt: skip
def test_an_overrides_value_is_yaml_or_else_text(text, value):
    found = yaml12.scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "Answer question #3 briefly", "# Title", "note: this", "- item", "'it' is #1", "3 # of ten", "two\nlines",
        "--- x", "&c b", "! Mind this", "> said", "[a] # b",
    ],
)  # fmt: skip
def test_text_of_an_override_stands_as_it_is_written(text):
    assert yaml12.scalar(text) == text


def test_every_value_knows_its_line():
    _, lines = yaml12.parse(
        "name: x\nstages:\n  a:\n    steps:\n      - kind: eda\n      - {kind: length,\n         n: 1}\n"
    )
    assert lines == {
        "name": 1, "stages": 2, "stages.a": 3, "stages.a.steps": 4, "stages.a.steps.0": 5, "stages.a.steps.0.kind": 5,
        "stages.a.steps.1": 6, "stages.a.steps.1.kind": 6, "stages.a.steps.1.n": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "where"), [("a: 1\nb: 2\na: 3", "line 3: a"), ("{a: 1, a: 1}", "line 1: a"), ("x:\n  b: 1\n  b: 1", "x.b")]
)
def test_a_key_that_stands_twice_is_an_error(text, where):
    with pytest.raises(RecipeError, match=f"stands twice: .*{where}"):
        yaml12.parse(text)


def test_defaults_may_be_merged_and_overridden():
    data, _ = yaml12.parse("base: &base {lr: 1e-4, steps: 2}\nuse:\n  <<: *base\n  steps: 3\n")
    assert data["use"] == {"lr": 1e-4, "steps": 3}


def test_two_uses_of_an_anchor_are_two_values():
    data, _ = yaml12.parse("a: &x {n: [1]}\nb: *x\n")
    data["a"]["n"].append(2)
    assert data["b"] == {"n": [1]}


@pytest.mark.parametrize(
    "text", ["", "- a", "just text", "a: !!int b", "a: [1", "a: &x [*x]", "a: 1\n---\nb: 2", "a:\n\t- b"]
)
def test_what_is_no_recipe_is_named(text):
    with pytest.raises(RecipeError, match=r"^mine\.yaml: "):
        yaml12.parse(text, "mine.yaml")


LAUGHS = "".join(f"{name}: &{name} [{', '.join(['*' + inner] * 9)}]\n" for inner, name in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 3000, "a: " + "[" * 3000 + "]" * 3000, f"a: &a [{'x, ' * 9}]\n{LAUGHS}"]
)
def test_a_recipe_that_would_fill_memory_or_stack_is_refused(text):
    with pytest.raises(RecipeError, match=r"nested too deep|more than 250,000 values"):
        yaml12.parse(text)


@pytest.mark.parametrize("text", ["&a [*a]", "[" * 3000])
def test_an_override_that_is_no_value_is_text(text):
    assert yaml12.scalar(text) == text


TEXTS = st.sampled_from(
    ["1e-4", "no", "010", "", "~", "true", ".5", "1_0", "a: b", "- a", "2024-01-01", "=", "<<", "#"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS | st.text(st.characters(codec="utf-8", exclude_characters="\x85")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab_", min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_written_is_read_back_with_its_type(value):
    back = yaml12.parse(yaml12.dump({"value": value}))[0]["value"]
    assert back == value
    assert repr(back) == repr(value)
