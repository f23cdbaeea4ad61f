"""Code instructions: kept is what runs and passes tests that mean something."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from scripted import SCRIPTS, run, script, texts
from tilth.errors import StageError
from tilth.generate.programs import assertions_in, code_of, names_in

PROBLEMS = {
    "double": ("def double(x):\n    return 2 * x", ["double(1) == 2", "double(2) == 4", "double(-3) == -6"]),
    "wrong": ("def wrong(x):\n    return x", ["wrong(1) == 2", "wrong(2) == 4", "wrong(3) == 6"]),
    "endless": ("def endless(x):\n    while True: pass", ["endless(1) == 1"] * 3),
    "few": ("def few(x):\n    return x", ["few(1) == 1", "few(2) == 2", "len('x') == 1", "few(1) == 1"]),
    "hollow": ("def hollow(x):\n    return x", ["hollow(1) or True", "hollow(2) or True", "hollow(3) or True"]),
    "prose": ("I would rather not.", ["x == x"] * 3),
}


@script
def coding(text, prompt):
    if "Write one new problem" in text:
        return f"Write the function {sorted(PROBLEMS)[prompt.seed % len(PROBLEMS)]}."
    name = re.search(r"function (\w+)\.", text).group(1)
    code, tests = PROBLEMS[name]
    if "tests:" in text:
        assert f"```python\n{code}\n```" in text
        checks = "\n".join(f"assert {test}" for test in dict.fromkeys(tests))
        return f"Here they are:\n```python\nprint('start')\n{checks}\n```\nDone."
    return f"Sure!\n```python\n{code}\n```" if "def" in code else code


def test_programs_are_kept_only_if_they_pass_tests_that_mean_something(tmp_path):
    endless = ["endless(1) == 1", "endless(2) == 2", "endless(3) == 3"]
    PROBLEMS["endless"] = (PROBLEMS["endless"][0], endless)
    method = {"kind": "code", "limits": {"seconds": 0.5}}
    _, done = run(
        tmp_path, "text", texts("Write a function."), method, generator="coding", budget={"max_rows": 20}, round_rows=20
    )
    rows = list(done.rows())
    assert {row["prompt"] for row in rows} == {"Write the function double."}
    assert rows[0]["completion"] == f"```python\n{PROBLEMS['double'][0]}\n```"
    assert rows[0]["meta"]["tests"].splitlines() == [f"assert {test}" for test in PROBLEMS["double"][1]]
    why = {row["prompt"].split()[-1][:-1]: row["reason"] for row in done.rejected_rows()}
    assert why == {
        "wrong": "fails: failed: AssertionError",
        "endless": "fails: time: more than 0.5 s of CPU",
        "few": "no_tests: 2 tests of the program's functions, fewer than 3",
        "hollow": "vacuous: the tests pass where nothing is returned as well",
        "prose": "no_tests: 0 tests of the program's functions, fewer than 3",
    }


@pytest.fixture
def mbpp(shared):
    lines = (shared / "data/code/mbpp.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    return [json.loads(line) for line in lines]


def test_given_tests_decide_and_unsolved_problems_are_asked_again(mbpp, tmp_path):
    asked = Counter()

    def solving(text, prompt):
        """The reference solution: of every other problem at once, of every fourth when asked again; else another's."""
        at = next(at for at, row in enumerate(mbpp) if text.startswith(row["text"]))
        assert mbpp[at]["test_list"][0] in text
        assert mbpp[at]["test_list"][1] not in text
        asked[at] += 1
        right = at % 2 == 0 or (at % 4 == 1 and asked[at] > 1)
        return f"```python\n{mbpp[at if right else at - 1]['code']}\n```"

    SCRIPTS["solving"] = solving
    rows = [{name: row[name] for name in ("text", "test_list", "test_setup_code", "task_id")} for row in mbpp]
    method = {"kind": "code", "tests": "given", "tests_from": ["test_setup_code", "test_list"]}
    artifact, done = run(tmp_path, "text", rows, method, generator="solving", target=12)
    assert artifact.detail["ended"].startswith("barren")
    assert [item["accepted"] for item in artifact.detail["rounds"]] == [6, 3, 0, 0, 0]
    parents = Counter(row["parent"] for row in done.rows())
    assert len(parents) == 9
    assert set(parents.values()) == {1}
    assert {row["reason"].partition(":")[0] for row in done.rejected_rows()} == {"fails"}


def test_rows_without_tests_are_told_apart_before_the_model_is_asked(tmp_path):
    with pytest.raises(StageError, match=r"no row carries tests in meta\.test_list"):
        run(tmp_path, "text", texts("Write."), {"kind": "code", "tests": "given"}, generator="coding", target=3)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Sure:\n```python\nx = 1\n```\nand\n```python\ny = 2\n```", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("x = 1\n", "x = 1"),
        ("```py\nx = 1", "x = 1"),
    ],
)
def test_code_is_found_in_an_answer(text, code):
    assert code_of(text) == code


def test_tests_are_the_assertions_on_what_a_program_defines():
    code = "import os\nclass A: pass\ndef f(x):\n    def g(): pass\nasync def h(): pass"
    assert names_in(code) == ["A", "f", "h"]
    found = assertions_in(
        "import os\nos.remove('x')\nassert f(1) == [\n 2]\nassert 1\nfor x in 1, 2:\n    assert f(x)", ["f"]
    )
    assert found == ["assert f(1) == [2]"]
    assert names_in("def f(:") == assertions_in("-" * 100_000 + "1", ["f"]) == []
