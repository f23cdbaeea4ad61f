"""The recipes of the methods that make data run from end to end, small, on answers that need no model."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import yaml

import tilth
from scripted import script
from tilth.data.dataset import Dataset
from tilth.kinds import KINDS
from tilth.recipe import MEASURED

PAYLOAD = {
    "completion": ("prompt", "completion"),
    "labelled": ("text", "label"),
    "chat": ("messages",),
}


@pytest.fixture
def ran(root, tmp_path):
    """Runs a recipe with another generator and other fields for its generating stage: its artifact and dataset."""

    def run(name, generator="{kind: echo}", **fields):
        path = f"examples/recipes/{name}.yaml"
        before = Path.cwd()
        os.chdir(root)
        try:
            (stage,) = (key for key, item in tilth.load(path).stages.items() if item.kind == "generate")
            small = {"generator": generator, "resources.workers": 0, "max_quarantined": 0.5, **fields}
            artifact = tilth.run(path, tmp_path, *(f"stages.{stage}.{key}={value}" for key, value in small.items()))
        finally:
            os.chdir(before)
        return artifact[stage], Dataset.open(artifact[stage])

    return run


def made(done, via):
    """The rows that were kept of those that were made, once the books and every one of them hold."""
    counts = done.counts
    assert counts["inputs"] == counts["accepted"] + counts["filtered"] + counts["quarantined"]
    rows = [row for row in done.rows() if row["via"] is not None]
    assert len({row["id"] for row in rows}) == len(rows) == counts["accepted"] > 0
    for row in rows:
        assert (row["via"], row["split"], row["reason"]) == (via, "train", None)
        assert all(row[column] for column in PAYLOAD[done.row_type])
    return rows


def test_self_instruct_goes_on_until_its_target_with_nothing_too_like_the_pool(ran):
    artifact, done = ran("self_instruct", target=12, **{"quality.diversity": "null"})
    rows = made(done, "self_instruct")
    told = artifact.store.read_json(MEASURED)["bias"]
    assert (told["of"]["synthetic"], told["limits"], told["exceeded"]) == (len(rows), {"identity": 0.2}, [])
    assert artifact.detail["ended"] == "target: 12 rows"
    assert len(rows) == 12
    assert sum(row["via"] is None for row in done.rows()) == 12, "the seeds are passed on"


def test_evol_instruct_evolves_what_it_evolved(ran):
    _, done = ran("evol_instruct", target=12)
    rows = made(done, "evol_instruct")
    generations = {row["id"]: row["meta"]["generation"] for row in rows}
    assert set(generations.values()) >= {1, 2}
    for row in rows:
        assert row["meta"]["generation"] == generations.get(row["parent"], 0) + 1


def test_instruction_back_translation_asks_for_what_was_written(ran, root):
    judge = {"method.judge": "{kind: echo}", "method.instructions": 8}
    _, done = ran("instruction_back_translation", **judge)
    rows = made(done, "instruction_back_translation")
    written = (root / "examples/data/passages.csv").read_text(encoding="utf-8")
    assert done.counts["inputs"] == 6 * 8
    assert all(row["completion"] in written and row["meta"]["score"] in (4, 5) for row in rows)


def test_magpie_talks_to_itself_and_leaves_the_system_messages_out(ran):
    _, done = ran("magpie", target=9)
    rows = made(done, "magpie")
    turns = ["user", "assistant", "user", "assistant"]
    assert [[turn["role"] for turn in row["messages"]] for row in rows] == [turns] * 9
    assert len({row["meta"]["system"] for row in rows}) == 3


def test_the_grid_fills_the_intents_that_have_too_few(ran):
    # words in another order are no messages of an intent: the gate `label` is left to a model that writes them
    steps = "[{kind: near_duplicates}, {kind: balance, at_least: 9}]"
    _, done = ran("grid", steps=steps, target=20)
    rows = made(done, "grid")
    assert min(Counter(row["label"] for row in done.rows() if row["split"] == "train").values()) >= 9
    assert all(row["label"] == row["meta"]["axes"]["label"] for row in rows)
    cells = Counter((row["meta"]["axes"]["tone"], row["meta"]["axes"]["situation"]) for row in rows)
    assert set(cells) == set(product(("polite", "annoyed", "in a hurry"), ("at home", "travelling abroad")))


@script
def quoting(text, prompt):
    """One answer with its sentence for each passage, and one whose sentence nobody wrote."""
    passage = text.partition("Passage:\n")[2]
    told = [("What?", passage.partition(".")[0], "That."), ("Why?", "as the moon says so", "Because.")]
    return json.dumps({"pairs": [dict(zip(("question", "evidence", "answer"), item, strict=True)) for item in told]})


def test_grounded_questions_stand_on_a_sentence_of_their_passage(ran):
    _, done = ran("grounded_qa", generator="{kind: scripted:Scripted, script: quoting}", steps="[]")
    rows = made(done, "grounded_qa")
    assert len(rows) == 6
    for row in rows:
        evidence = row["meta"]["evidence"]
        assert row["prompt"][evidence["start"] : evidence["end"]] == evidence["text"], "the prompt begins with it"
    assert [row["reason"] for row in done.rejected_rows()] == [
        "unsupported: the passage does not say 'as the moon says so'"
    ] * 6


def test_rules_keep_what_breaks_none(ran):
    _, done = ran("rules", target=8)
    for row in made(done, "rules"):
        assert row["label"] in ("card_arrival", "lost_or_stolen_card", "change_pin")
        assert 5 <= len(row["text"].split()) <= 40
        assert row["meta"]["answer"]["urgency"] in ("low", "high")
    assert {row["reason"].partition(":")[0] for row in done.rejected_rows()} >= {"rule"}


@script
def programming(text, prompt):
    """Invents the sum of some numbers, solves it rightly or not, and tests it."""
    if "Write one new problem" in text:
        return f"Write a function total(a, b) that returns a + b + {prompt.seed % 97}."
    term = int(re.search(r"a \+ b \+ (\d+)", text).group(1))
    if "Write the solution" in text:
        return f"```python\ndef total(a, b):\n    return a + b + {term if term % 3 else 1000}\n```"
    return "```python\n" + "".join(f"assert total({n}, 1) == {n + 1 + term}\n" for n in range(5)) + "```"


def test_programs_are_kept_that_pass_their_tests(ran):
    _, done = ran("code", generator="{kind: scripted:Scripted, script: programming}", target=4, steps="[]")
    for row in made(done, "code"):
        scope = {}
        exec(row["completion"].removeprefix("```python").removesuffix("```") + row["meta"]["tests"], scope)
    assert {row["reason"].partition(":")[0] for row in done.rejected_rows()} <= {"fails", "surplus"}


def test_every_method_that_makes_data_has_its_recipe(root):
    found = set()
    for path in (root / "examples/recipes").glob("*.yaml"):
        found |= {
            item["method"]["kind"] for item in yaml.safe_load(path.read_text())["stages"].values() if "method" in item
        }
    assert found == set(KINDS["method"])
