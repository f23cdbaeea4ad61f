"""Rounds: one stage after another of the same method, targets, and what a stage counts of what it spent."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

import tilth
from processes import until
from scripted import recipe, run, script
from test_balance import Stopping
from test_generate import Slow, Titles
from tilth.augment.base import KEEP, Filter, Verdict
from tilth.data.dataset import Dataset
from tilth.data.schema import Row
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.generate import rounds
from tilth.generate.base import Generate as Ask
from tilth.generate.base import Generator
from tilth.generate.instruction_back_translation import InstructionBackTranslation
from tilth.generate.method import Made, MakeFunction, Yield
from tilth.generate.templates import Template, Templates

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


class Headings(Titles):
    """Says of every other row what it said of the row before."""

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        def make(asks: list[Row]) -> list[Yield]:
            numbers = [int(re.findall(r"\d+", ask["prompt"])[0]) // 2 for ask in asks]
            return [Yield([Made({"prompt": f"heading {n}", "completion": "x"})]) for n in numbers]

        return make


UNIQUE = {"kind": "unique", "by": ["prompt"]}


@pytest.mark.parametrize(("target", "kept", "ended"), [(8, 8, "target: 8 rows"), (40, 30, "exhausted: ")])
def test_a_target_is_met_by_what_stays_of_a_dataset_after_all_rows_were_compared(target, kept, ended, tmp_path):
    rows = [{"prompt": f"Name {n} rivers.", "completion": "…"} for n in range(60)]
    fields = {"steps": [UNIQUE], "target": target, "unit_rows": 2}
    artifact, done = run(tmp_path, "completion", rows, {"kind": "test_rounds:Headings"}, **fields)
    assert len(done) == kept
    assert artifact.detail["ended"].startswith(ended)
    assert len({row["prompt"] for row in done.rows()}) == kept
    made = sum(item["made"] for item in artifact.detail["rounds"])
    assert made == 60 if kept == 30 else 16 <= made <= 24


@script
def three_pairs(text: str, prompt: Any) -> str:
    passage = text.rpartition("Passage:\n")[2]
    pairs = [
        {"question": f"{word}: {passage}", "evidence": passage, "answer": passage} for word in ("How", "Why", "Who")
    ]
    return json.dumps({"pairs": pairs})


def test_a_target_asks_no_more_of_a_method_that_makes_several_rows_of_each(tmp_path):
    rows = [{"text": f"River {n} flows to the sea."} for n in range(200)]
    fields = {"steps": [UNIQUE], "target": 30, "unit_rows": 2, "generator": "three_pairs"}
    artifact, done = run(tmp_path, "text", rows, {"kind": "grounded_qa", "pairs": 3}, **fields)
    assert len(done) == 30
    assert 30 <= sum(item["made"] for item in artifact.detail["rounds"]) <= 36


def test_methods_say_how_many_rows_they_make_of_one():
    three = tuple(Template(name=name, jinja="{{ text }} ||| a") for name in ("one", "two", "three"))
    many = {each: Templates(templates=three, per_row=each).per_ask for each in (1, 2, 5, None)}
    assert many == {1: 1, 2: 2, 5: 3, None: 3}
    assert InstructionBackTranslation(instructions=4).per_ask == 4
    assert Titles().per_ask == 1


def test_a_dataset_of_which_hardly_a_row_passes_is_gone_through_to_its_end(tmp_path):
    rows = [{"prompt": f"Name {n} rivers.", "completion": "…"} for n in range(400)]
    steps = [{"kind": "test_rounds:Late"}, UNIQUE]
    fields = {"steps": steps, "target": 2, "unit_rows": 2}
    artifact, done = run(tmp_path, "completion", rows, {"kind": "test_rounds:Headings"}, **fields)
    assert [row["prompt"] for row in done.rows()] == ["heading 198", "heading 199"]
    assert len(artifact.detail["rounds"]) <= 6


class Late(Filter):
    """Lets the last headings pass alone."""

    field: str = "prompt"

    def load_verdicts(self, inputs, fitted):
        return lambda items: [KEEP if int(c.text.split()[1]) >= 198 else Verdict("early") for c in items]


class Counted(Slow):
    """Knows how many questions it was asked."""

    in_flight: ClassVar[int] = 4
    asked: ClassVar[list[int]] = [0]

    def load(self, inputs: Inputs) -> Ask:
        answer = super().load(inputs)

        def ask(prompts: Any) -> Any:
            self.asked[0] += len(prompts)
            return answer(prompts)

        return ask


def test_units_in_flight_when_a_budget_ends_are_counted_and_kept(tmp_path):
    Counted.asked[0] = 0
    fields = {"budget": {"max_rows": 2}, "unit_rows": 2, "generator": {"kind": "test_rounds:Counted"}}
    artifact, done = run(tmp_path, "completion", PROMPTS, {"kind": "test_generate:Titles"}, **fields)
    asked = Counted.asked[0]
    assert 2 < asked <= 12
    assert len(done) == artifact.metrics["made"] == asked
    assert artifact.detail["ended"] == f"max_rows: {asked} of 2"


@pytest.mark.long
def test_units_in_flight_on_ray_when_a_budget_ends_are_counted_and_kept(ray_session, tmp_path):
    slow = {"kind": "faulty:SlowEcho", "seconds": 3, "file": str(tmp_path / "asked")}
    fields = {"budget": {"max_rows": 1}, "unit_rows": 1, "generator": slow, "resources": {"workers": 2}}
    artifact, done = run(tmp_path, "completion", PROMPTS, {"kind": "test_generate:Titles"}, **fields)
    asked = len((tmp_path / "asked").read_text().splitlines())
    assert 1 < asked < 12
    assert len(done) == artifact.metrics["made"] == asked
    assert artifact.detail["ended"] == f"max_rows: {asked} of 1"


def test_an_interrupt_waits_for_no_unit_in_flight_and_a_second_run_makes_every_row_once(tmp_path):
    slow = {"kind": "faulty:SlowEcho", "seconds": 30, "file": str(tmp_path / "asked")}
    made = recipe(tmp_path, "completion", PROMPTS, {"kind": "test_generate:Titles"}, generator=slow, unit_rows=2)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    command = [sys.executable, "-m", "tilth", "run", str(path), "--out", str(tmp_path / "out")]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    # where the tests were started in the background, SIGINT is ignored here and in all that is started from here
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=here, stderr=subprocess.DEVNULL, preexec_fn=heard) as first:
        assert until((tmp_path / "asked").exists, 120)
        first.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert first.wait(60) != 0
        assert time.monotonic() - begun < 20
    slow["seconds"] = 0
    path.write_text(yaml.safe_dump(made))
    done = Dataset.open(tilth.run(tilth.load(path), tmp_path / "out")["made"])
    assert sorted(row["parent"] for row in done.rows()) == sorted({row["parent"] for row in done.rows()})
    assert len(done) == 12


def test_the_hours_of_a_run_that_was_killed_count_and_what_it_made_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "SPENT_SECONDS", 0.0)
    fields = {"budget": {"max_hours": 1.0}, "unit_rows": 2, "generator": {"kind": "test_balance:Stopping"}}
    Stopping.left[0] = 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "completion", PROMPTS, {"kind": "test_generate:Titles"}, **fields)
    spent = next(tmp_path.glob("out/stages/made/*/rounds/0000/spent.json"))
    assert float(spent.read_text()) > 0
    spent.write_text("3500.0")
    Stopping.left[0] = 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "completion", PROMPTS, {"kind": "test_generate:Titles"}, **fields)
    assert float(spent.read_text()) > 3500
    spent.write_text("3600.0")
    artifact, done = run(tmp_path, "completion", PROMPTS, {"kind": "test_generate:Titles"}, **fields)
    assert artifact.detail["ended"].startswith("max_hours: 1 of 1")
    assert artifact.detail["seconds"] >= 3600
    assert len(done) == 8


def test_a_judge_among_the_gates_spends_the_budget_at_its_own_price(tmp_path):
    judge = {"kind": "judge_score", "generator": {"kind": "echo"}, "field": "completion", "min_score": 1}
    prices = {"prompt_price": 0.0, "completion_price": 0.0, "judge_prompt_price": 10.0, "judge_completion_price": 0.0}
    fields = {"steps": [judge], "unit_rows": 1, "budget": {"max_cost": 0.002, **prices}}
    artifact, done = run(tmp_path, "completion", PROMPTS, {"kind": "test_generate:Titles"}, **fields)
    assert artifact.detail["ended"].startswith("max_cost: ")
    tokens = sum(row["meta"]["usage"]["judge_prompt_tokens"] for row in done.rows())
    assert artifact.metrics["judge_prompt_tokens"] == tokens
    assert artifact.metrics["cost"] == pytest.approx(tokens * 10 / 1e6, abs=1e-4)
    assert 1 <= len(done) < 12
