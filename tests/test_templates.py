"""Templates: those of P3 render what T0 was trained on, a bad one does no harm, demonstrations are the row's own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import tilth
from tilth.data.dataset import Dataset
from tilth.data.schema import Row
from tilth.errors import RecipeError, StageError

SPAM = "{{text}} Is it spam? ||| {{answer_choices[label]}}"
TEXTS = ["win a prize now", "see you at noon", "cheap watches here", "the minutes are attached", "claim your money"]


def recipe(folder: Path, rows: list[dict[str, Any]], row: str = "labelled", **method: Any) -> dict[str, Any]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    payload = {"text", "label", "prompt", "completion", "messages"}
    carry = sorted({name for item in rows for name in item} - payload)
    here = {"workers": 0}
    source = {"kind": "jsonl", "path": str(file), "carry": carry, "task": "mail"}
    keep = {"whitespace": "keep", "duplicates": "keep", "unicode": "keep", "control": "keep"}
    data = {"kind": "data", "row": row, "source": source, "clean": keep, "resources": here}
    made = {"kind": "generate", "data": "@data", "method": {"kind": "templates", **method}, "resources": here}
    return {"name": "templated", "stages": {"data": data, "made": {**made, "max_quarantined": 1, "keep_data": False}}}


def run(folder: Path, rows: list[dict[str, Any]], row: str = "labelled", **method: Any) -> Dataset:
    folder.mkdir(exist_ok=True)
    return Dataset.open(tilth.run(recipe(folder, rows, row, **method), folder / "out")["made"])


def mails(count: int) -> list[dict[str, Any]]:
    return [{"text": f"{TEXTS[n % 5]} ({n})", "label": (n + 1) % 2} for n in range(count)]


def written(jinja: str, choices: str | None = None, name: str = "own") -> dict[str, Any]:
    return {"name": name, "jinja": jinja, "answer_choices": choices}


def test_a_row_becomes_a_prompt_and_its_answer(tmp_path):
    done = run(tmp_path, mails(4), templates=[written(SPAM, "no ||| yes")])
    rows = list(done.rows())
    assert done.row_type == "completion"
    assert (rows[0]["prompt"], rows[0]["completion"]) == ("win a prize now (0) Is it spam?", "yes")
    assert rows[0]["id"] == f"{rows[0]['parent']}/templates.0"
    assert rows[0]["task"] == "mail"
    assert rows[0]["meta"]["template"] == "own"
    assert rows[0]["meta"]["choices"] == ["no", "yes"]
    assert len(rows) == 4


def test_a_label_is_a_number_only_where_it_is_written_as_one(tmp_path):
    labels = ["0", "7", "12", "007", "\u0663", "-1", "9" * 5000]
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]
    done = run(tmp_path, rows, templates=[written("{{text}} {{label is number}} ||| {{label}}")])
    assert [row["completion"] for row in done.rows()] == labels
    assert [row["prompt"].endswith("True") for row in done.rows()] == [True] * 3 + [False] * 4


def test_labels_in_words_have_numbers_by_their_class_and_names_for_people(tmp_path):
    rows = [{"text": "a", "label": "pos_1"}, {"text": "b", "label": "neg_1"}]
    names = {"neg_1": "bad", "pos_1": "good"}
    method = {"classes": ["neg_1", "pos_1"], "label_names": names, "per_row": None}
    templates = [
        written("{{text}} {{label}} {{label_name}} ||| {{answer_choices[label]}}", None, "named"),
        written("{{text}} {{label}} ||| {{answer_choices[label]}}", "no ||| yes", "chosen"),
    ]
    done = run(tmp_path, rows, templates=templates, **method)
    assert {(row["prompt"], row["completion"]) for row in done.rows()} == {
        ("a 1 good", "good"), ("b 0 bad", "bad"), ("a 1", "yes"), ("b 0", "no"),
    }  # fmt: skip


def test_conversations_and_completions_have_templates_too(tmp_path):
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    jinja = "{% for turn in messages[:-1] %}{{turn.role}}: {{turn.content}}{% endfor %} ||| {{messages[-1].content}}"
    done = run(tmp_path / "chat", [{"messages": turns}], "chat", templates=[written(jinja)])
    assert [(row["prompt"], row["completion"]) for row in done.rows()] == [("user: Hello?", "Yes.")]
    given = [{"prompt": "2+2", "completion": "4"}]
    done = run(tmp_path / "sums", given, "completion", templates=[written("Compute {{prompt}}. ||| {{completion}}")])
    assert [(row["prompt"], row["completion"]) for row in done.rows()] == [("Compute 2+2.", "4")]


def test_how_many_templates_a_row_gets_and_that_they_are_its_own(tmp_path):
    templates = [written(f"{n}: {SPAM}", "no ||| yes", f"t{n}") for n in range(5)]
    two = run(tmp_path / "two", mails(40), templates=templates, per_row=2)
    used: dict[str, list[str]] = {}
    for row in two.rows():
        used.setdefault(row["parent"], []).append(row["meta"]["template"])
    assert all(len(set(names)) == 2 for names in used.values())
    assert len({tuple(names) for names in used.values()}) > 4
    fewer = run(tmp_path / "fewer", mails(10), templates=templates, per_row=2)
    for row in fewer.rows():
        assert row["meta"]["template"] in used[row["parent"]], "a row's templates do not depend on its neighbours"
    assert len(run(tmp_path / "all", mails(4), templates=templates, per_row=None)) == 20


def test_a_separator_within_a_value_is_none(tmp_path):
    rows = [{"text": "a ||| b", "label": "c ||| d", "list": ["e ||| f"]}]
    done = run(tmp_path, rows, templates=[written("{{text}} {{list[0]}} ||| {{label}}")])
    assert [(row["prompt"], row["completion"]) for row in done.rows()] == [("a ||| b e ||| f", "c ||| d")]


def test_random_choices_belong_to_the_row(tmp_path):
    template = written("{{ ['a','b','c','d'] | choice }}{{ ['a','b','c','d'] | random }} {{text}} ||| {{label}}")
    first = {row["id"]: row["prompt"] for row in run(tmp_path / "a", mails(30), templates=[template]).rows()}
    again = {row["id"]: row["prompt"] for row in run(tmp_path / "b", mails(9), templates=[template]).rows()}
    assert len({prompt[:2] for prompt in first.values()}) > 6
    assert again.items() <= first.items()


def demonstrated(folder: Path, count: int, **fields: Any) -> list[Row]:
    shown = {"data": "@data", "shots": 3, **fields}
    stages = recipe(folder, mails(count), templates=[written(SPAM, "no ||| yes")], demonstrations=shown)
    stages["stages"]["data"]["split"] = {"test": 0.3}
    return list(Dataset.open(tilth.run(stages, folder / "out")["made"]).rows())


def test_demonstrations_are_solved_training_rows_and_never_the_row_itself(tmp_path):
    rows = demonstrated(tmp_path, 120)
    train = {row["prompt"].rpartition("\n\n")[2] for row in rows if row["split"] == "train"}
    few = [row for row in rows if row["meta"]["shots"]]
    assert 40 < len(few) < 80, "half of them"
    assert any(row["split"] == "test" for row in few)
    for row in few:
        *shown, own = row["prompt"].split("\n\n")
        assert len(shown) == row["meta"]["shots"] == 3
        questions = [part.rpartition("\n")[0] for part in shown]
        assert len(set(questions)) == 3
        assert own not in questions
        assert set(questions) <= train, "of the training rows alone"
        assert all(part.rpartition("\n")[2] in ("yes", "no") for part in shown)


def test_zero_shot_or_in_context_altogether(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "all").mkdir()
    assert {row["meta"]["shots"] for row in demonstrated(tmp_path / "none", 30, zero_shot=1)} == {0}
    assert {row["meta"]["shots"] for row in demonstrated(tmp_path / "all", 30, zero_shot=0)} == {3}


def test_demonstrations_of_tasks_that_no_row_has_end_the_stage(tmp_path):
    shown = {"data": "@other", "shots": 3}
    stages = recipe(tmp_path, mails(8), templates=[written(SPAM, "no ||| yes")], demonstrations=shown)
    data = stages["stages"]["data"]
    stages["stages"]["other"] = {**data, "source": {**data["source"], "task": None}}
    with pytest.raises(StageError, match=r"@other has none and the rows have task 'mail'; name the task"):
        tilth.run(stages, tmp_path / "out")
    stages["stages"]["other"] = data
    assert len(Dataset.open(tilth.run(stages, tmp_path / "out")["made"])) == 8


RUNAWAYS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "one long operation": "{{ 3 ** (text | length * 10 ** 7) > 1 }}",
    "much memory": "{{ ('a' * 10 ** 9) | length }}",
    "much output": "{% for i in range(99999) %}{{ text }}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}


@pytest.mark.parametrize("what", RUNAWAYS)
def test_a_runaway_template_is_dropped_and_its_neighbours_are_made(what, tmp_path):
    guard = "{% if text.startswith('win') %}" + RUNAWAYS[what] + "{% endif %}"
    limits = {"seconds": 0.3, "characters": 50_000, "memory_mib": 256}
    start = time.monotonic()
    done = run(tmp_path, mails(6), templates=[written(guard + SPAM, "no ||| yes")], limits=limits)
    assert time.monotonic() - start < 60
    reasons = [row["reason"] for row in done.rejected_rows()]
    assert len(reasons) == 2
    assert all(reason.startswith("runaway: template 'own': ") for reason in reasons)
    assert len(done) == 4


def test_checking_a_template_computes_nothing_of_it(tmp_path):
    start = time.monotonic()
    for jinja in (RUNAWAYS["one long operation"], "{{ 'a' | center(10 ** 12) }}", RUNAWAYS["much memory"]):
        tilth.load(recipe(tmp_path, mails(1), templates=[written(jinja + SPAM)], columns=[]))
    assert time.monotonic() - start < 5


def test_a_template_that_always_runs_away_ends_the_stage_soon(tmp_path):
    with pytest.raises(StageError, match=r"'own' ran away on 3 rows in a row"):
        run(tmp_path, mails(40), templates=[written(RUNAWAYS["much memory"] + SPAM, "no ||| yes")])


@pytest.mark.parametrize(
    "escape",
    [
        "{{ text.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ [].append(1) }}",
        "{{ self._TemplateReference__context }}",
        "{{ '%s'.format.__globals__ }}",
        "{{ range(10 ** 7) | list | length }}",
        "{% include 'secrets' %}",
    ],
)
def test_nothing_of_the_machine_is_within_reach(escape, tmp_path):
    guard = "{% if text.startswith('win') %}" + escape + "{% endif %}"
    done = run(tmp_path, mails(5), templates=[written(guard + SPAM, "no ||| yes")])
    assert [row["reason"].partition(":")[0] for row in done.rejected_rows()] == ["failed"]
    assert len(done) == 4


def test_rows_that_a_template_is_not_for_are_dropped_by_name(tmp_path):
    rows = [{"text": "a", "label": 0, "title": "T"}, {"text": "b", "label": 1}, {"text": "c", "label": 0, "title": "V"}]
    templates = [
        written("{{title}} {{text}} ||| {{label}}", None, "titled"),
        written("{% if label == 1 %}{{text}} ||| {{label}}{% endif %}", None, "ones"),
        written("{{text}} ||| {% if label == 1 %}one{% endif %}", None, "answered"),
        written("{{text}} ||| a ||| b", None, "three"),
    ]
    done = run(tmp_path, rows, templates=templates, per_row=None)
    reasons = [row["reason"] for row in done.rejected_rows()]
    assert len(done) == 4
    assert "missing_column: template 'titled' names title, which the row has not" in reasons
    assert "malformed: template 'ones' gives 1 parts, not prompt ||| completion" in reasons
    assert "empty: template 'answered' leaves the completion empty" in reasons
    assert "malformed: template 'three' gives 3 parts, not prompt ||| completion" in reasons


def test_a_template_for_other_data_ends_the_stage_and_names_its_column(tmp_path):
    with pytest.raises(StageError, match=r"'nli' needs column premise, .*they have: .*label.*text"):
        run(tmp_path, mails(8), templates=[written("{{premise}} ||| {{label}}", None, "nli")])


def units_of_four(folder: Path, rows: list[dict[str, Any]], **method: Any) -> Dataset:
    stages = recipe(folder, rows, **method)
    stages["stages"]["made"]["unit_rows"] = 4
    return Dataset.open(tilth.run(stages, folder / "out")["made"])


def test_a_column_that_only_other_units_have_ends_nothing(tmp_path):
    rows = [{**row, "title": "T"} if number < 8 else row for number, row in enumerate(mails(16))]
    done = units_of_four(tmp_path, rows, templates=[written("{{title}} ||| {{label}}", None, "titled")])
    reasons = {row["reason"] for row in done.rejected_rows()}
    assert (len(done), len(list(done.rejected_rows()))) == (8, 8)
    assert reasons == {"missing_column: template 'titled' names title, which the row has not"}


FIVE = "a ||| b ||| c ||| d ||| e"


def test_a_row_without_a_column_that_others_have_is_dropped_whatever_no_row_has(tmp_path):
    rows = [{**row, "topic": n} if n < 4 else row for n, row in enumerate(mails(5))]
    templates = [
        written("{{text}} {{topic}} ||| {{answer_choices[label] if answer_choices else label_name}}", None, "asking"),
        written("{{text}}{% if title is defined %}{{title}}{% endif %} ||| {{answer_choices[topic]}}", FIVE, "taking"),
    ]
    done = units_of_four(tmp_path, rows, templates=templates, per_row=None)
    assert {row["reason"] for row in done.rejected_rows()} == {
        "missing_column: template 'asking' names answer_choices, topic, which the row has not",
        "missing_column: template 'taking' names title, topic, which the row has not",
    }
    assert len(done) == 8


def test_a_template_may_ask_for_a_column_that_no_row_has(tmp_path):
    asking = "{% if title is defined %}{{title}}{% endif %}{{text}} ||| {{label}}"
    assert len(units_of_four(tmp_path, mails(5), templates=[written(asking)])) == 5


def test_choices_that_no_row_has_end_the_stage(tmp_path):
    with pytest.raises(StageError, match="'own' needs column answer_choices"):
        units_of_four(tmp_path, mails(5), templates=[written(SPAM)])


def problems(folder: Path, **method: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        tilth.load(recipe(folder, mails(1), **method))
    return str(caught.value)


def test_faults_are_found_before_anything_runs(tmp_path):
    assert "no file matches" in problems(tmp_path, file=str(tmp_path / "none.yaml"))
    assert "'own' is no template" in problems(tmp_path, templates=[written("{% if %} ||| b")])
    assert "'own' has no |||" in problems(tmp_path, templates=[written("{{text}}")])
    assert "two templates are called 'own'" in problems(tmp_path, templates=[written(SPAM), written(SPAM)])
    assert "no template is called 'mine'" in problems(tmp_path, templates=[written(SPAM)], only=["mine"])
    lacking = problems(tmp_path, templates=[written("{{premise}}{{range(2)}} ||| {{label}}")], columns=["hypothesis"])
    assert "template 'own' names premise, which rows do not have" in lacking
    assert "hypothesis" in lacking


def test_a_changed_template_file_is_another_stage(tmp_path):
    file = tmp_path / "templates.yaml"
    for name in ("one", "two"):
        body = {"templates": {"k": {"name": name, "jinja": SPAM, "answer_choices": "no ||| yes"}}}
        file.write_text(yaml.safe_dump(body), encoding="utf-8")
        done = run(tmp_path, mails(3), file=str(file))
        assert {row["meta"]["template"] for row in done.rows()} == {name}


def test_the_recipe_of_the_examples_learns_one_task_and_evaluates_another(root, tmp_path):
    before = Path.cwd()
    os.chdir(root)
    try:
        small = ("stages.banking.sample.per_label=4", "stages.intents.resources.workers=0")
        found = tilth.run("examples/recipes/templates.yaml", tmp_path, *small)
    finally:
        os.chdir(before)
    rows = list(Dataset.open(found["mixture"]).rows())
    assert {row["task"] for row in rows if row["split"] == "train"} == {"intents"}
    assert sum(row["task"] == "answers" and row["split"] == "test" for row in rows) == 10
    assert len({row["meta"]["template"] for row in rows if row["task"] == "intents"}) == 3
    assert {row["meta"]["shots"] for row in rows if row["task"] == "intents"} == {0, 2}
