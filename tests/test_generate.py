"""Stage generate: as many rows as wanted, each once, with its origin and its tokens, whatever dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from pydantic import Field

import tilth
from helpers import final
from tilth.data.dataset import Dataset
from tilth.data.schema import Row
from tilth.data.transform import Inputs
from tilth.errors import QuarantineError, RecipeError, StageError
from tilth.generate.base import Completion, Generator, Prompt
from tilth.generate.base import Generate as Ask
from tilth.generate.echo import Echo
from tilth.generate.method import Made, MakeFunction, RowMethod, Yield, opened, why_not
from tilth.generate.self_instruct import split_list
from tilth.planning import plan
from tilth.report import write_report

HERE = Path(__file__).parent
SEEDS = [
    "Name three rivers of Europe and the sea that each of them reaches.",
    "Rewrite this sentence so that a child of six understands it.",
    "Sort these words by the number of their letters.",
    "Say whether this review is positive or negative.",
    "Explain why the sky is blue at noon and red in the evening.",
    "Write a short poem about an old harbour in winter.",
    "Give two arguments for and two against school uniforms.",
    "Translate the sentence into plain English without jargon.",
    "List the steps that are needed to plant a young tree.",
    "Find the mistake in this sum and correct it.",
]


class Titles(RowMethod):
    """One completion for each row: a title."""

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        ask = opened(generator, inputs)

        def make(asks: list[Row]) -> list[Yield]:
            prompts = [
                Prompt(({"role": "user", "content": f"A title for: {a['prompt']}"},), self.seed_of(a)) for a in asks
            ]
            answers = ask(prompts)
            return [
                Yield([Made({"prompt": a["prompt"], "completion": x.first.text}, why_not(x))], [x])
                for a, x in zip(asks, answers, strict=True)
            ]

        return make


class Slow(Echo):
    """Takes its time, and knows how many asked at once."""

    in_flight: ClassVar[int] = 3
    seconds: float = Field(0.05, description="For each call.")
    most: ClassVar[list[int]] = [0]
    inside: ClassVar[list[int]] = [0]

    def load(self, inputs: Inputs) -> Ask:
        answer, lock = super().load(inputs), threading.Lock()

        def ask(prompts: Any) -> Any:
            with lock:
                self.inside[0] += 1
                self.most[0] = max(self.most[0], self.inside[0])
            time.sleep(self.seconds)
            with lock:
                self.inside[0] -= 1
            return answer(prompts)

        return ask


class Halved(Echo):
    """Every third answer holds half of a character, as a model's JSON may."""

    def load(self, inputs: Inputs) -> Ask:
        answer = super().load(inputs)

        def ask(prompts: Any) -> Any:
            return [
                replace(a, completions=(Completion("half \ud83d of it"),)) if p.seed % 3 == 0 else a
                for p, a in zip(prompts, answer(prompts), strict=True)
            ]

        return ask


def recipe(folder: Path, seeds: int = len(SEEDS), **fields: Any) -> dict[str, Any]:
    rows = [{"prompt": f"{SEEDS[i % 10]} ({i})" if i >= 10 else SEEDS[i], "completion": "…"} for i in range(seeds)]
    (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = {
        "kind": "generate",
        "data": "@seeds",
        "method": {"kind": "self_instruct"},
        "generator": {"kind": "echo"},
        "resources": {"workers": 0},
        **fields,
    }
    source = {"kind": "jsonl", "path": str(folder / "seeds.jsonl")}
    return {
        "name": "made",
        "stages": {"seeds": {"kind": "data", "row": "completion", "source": source}, "made": made},
    }


def run(folder: Path, seeds: int = len(SEEDS), **fields: Any) -> tuple[Any, Dataset]:
    artifact = tilth.run(recipe(folder, seeds, **fields), folder / "out")["made"]
    return artifact, Dataset.open(artifact)


def made_rows(done: Dataset) -> list[Row]:
    return [row for row in done.rows() if row["via"]]


def test_exactly_the_target_comes_out_and_every_row_says_where_it_is_from(tmp_path):
    artifact, done = run(tmp_path, target=40, round_rows=16)
    rows = made_rows(done)
    assert len(rows) == 40
    assert len({row["id"] for row in done.rows()}) == 50, "ten seeds and forty made, each once"
    assert {row["split"] for row in rows} == {"train"}
    assert {row["via"] for row in rows} == {"self_instruct"}
    assert all(row["seed"] and row["model"] == "echo" and row["root"] == row["id"] for row in rows)
    counts = done.counts
    assert counts["inputs"] == counts["accepted"] + counts["filtered"] + counts["quarantined"]
    assert artifact.detail["ended"] == "target: 40 rows"
    assert sum(row["accepted"] for row in artifact.detail["rounds"]) >= 40


def test_the_tokens_of_the_stage_are_those_that_its_rows_name(tmp_path):
    artifact, done = run(tmp_path, target=20)
    usage = Counter()
    for row in [*made_rows(done), *done.rejected_rows()]:
        usage.update(row["meta"].get("usage", {}))
    assert usage["prompt_tokens"] > usage["completion_tokens"] > 0
    assert dict(usage) == {name: artifact.metrics[name] for name in ("prompt_tokens", "completion_tokens")}


def test_the_same_recipe_gives_the_same_rows_and_another_seed_others(tmp_path):
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        done = run(tmp_path / name, target=15, method={"kind": "self_instruct", "seed": seed})[1]
        texts.append([row["prompt"] for row in made_rows(done)])
    assert texts[0] == texts[1] != texts[2]


def test_a_pool_grows_and_its_own_rows_are_shown_to_the_model(tmp_path):
    _, done = run(tmp_path, target=40, round_rows=16)
    folder = next((tmp_path / "out/stages/made").iterdir())
    import pyarrow.parquet as pq

    later = pq.read_table(folder / "rounds/0002/asks.parquet")["meta"].to_pylist()
    shown = {text for meta in later for text in json.loads(meta)["demonstrations"]}
    assert shown & set(SEEDS)
    assert shown & {row["meta"]["instruction"] for row in made_rows(done)}


@pytest.mark.parametrize(
    ("budget", "ended"),
    [({"max_tokens": 2000}, "max_tokens"), ({"max_rows": 30}, "max_rows"), ({"max_hours": 1e-7}, "max_hours")],
)
def test_a_budget_ends_the_stage_with_a_whole_dataset(budget, ended, tmp_path):
    if ended == "max_hours":
        with pytest.raises(StageError, match=r"no row was accepted \(max_hours"):
            run(tmp_path, budget=budget)
        return
    artifact, done = run(tmp_path, budget=budget, round_rows=16, unit_rows=2)
    assert artifact.detail["ended"].startswith(ended)
    rows = made_rows(done)
    assert 0 < len(rows) < 200
    assert len({row["id"] for row in rows}) == len(rows)
    again = tilth.run(recipe(tmp_path, budget=budget, round_rows=16, unit_rows=2), tmp_path / "out")["made"]
    assert again.created == artifact.created, "a stage that ended by its budget is done"


def test_cost_is_counted_from_prices(tmp_path):
    budget = {"max_cost": 0.01, "prompt_price": 1.0, "completion_price": 2.0}
    artifact, _ = run(tmp_path, budget=budget, round_rows=64, unit_rows=1)
    spent = artifact.metrics["prompt_tokens"] * 1e-6 + artifact.metrics["completion_tokens"] * 2e-6
    assert spent == pytest.approx(artifact.metrics["cost"], abs=1e-4)
    assert 0.01 <= spent < 0.012, "it stopped at the unit that went over"


def test_answers_that_are_not_whole_are_dropped_by_name_and_never_pass_for_complete(tmp_path):
    _, done = run(
        tmp_path,
        60,
        data="@seeds",
        method={"kind": "test_generate:Titles"},
        generator={"kind": "echo", "truncated": 0.3, "failing": 0.1},
        max_quarantined=0.5,
    )
    reasons = Counter(row["reason"].partition(":")[0] for row in done.rejected_rows())
    assert set(reasons) == {"truncated", "quarantined/echo"}
    assert 8 < reasons["truncated"] < 30
    assert len(made_rows(done)) + sum(reasons.values()) == 60


def test_a_row_with_half_a_character_is_dropped_by_name_and_its_neighbours_stay(tmp_path):
    fields = {"method": {"kind": "test_generate:Titles"}, "generator": {"kind": "test_generate:Halved"}}
    _, done = run(tmp_path, 60, **fields)
    dropped = list(done.rejected_rows())
    assert {row["reason"] for row in dropped} == {"bad_character: holds U+D83D"}
    assert {row["completion"] for row in dropped} == {"half ? of it"}
    assert 8 < len(dropped) < 35
    assert len(made_rows(done)) + len(dropped) == 60


def test_too_many_quarantined_answers_fail_the_stage_with_the_tally(tmp_path):
    fields = {"method": {"kind": "test_generate:Titles"}, "generator": {"kind": "echo", "failing": 0.5}}
    with pytest.raises(QuarantineError, match=r"echo"):
        run(tmp_path, 40, **fields)


def test_a_method_over_rows_names_the_row_as_parent_and_stops_at_the_target(tmp_path):
    fields = {"method": {"kind": "test_generate:Titles"}, "unit_rows": 5, "keep_data": False}
    _, whole = run(tmp_path, 40, **fields)
    assert Counter(row["parent"] for row in whole.rows()).most_common(1)[0][1] == 1
    assert len(whole) == 40
    _, part = run(tmp_path, 40, **fields, target=12)
    assert len(part) == 12


def test_several_units_are_in_flight_and_give_the_same_rows(tmp_path):
    fields = {"method": {"kind": "test_generate:Titles"}, "unit_rows": 4, "keep_data": False}
    _, one = run(tmp_path, 40, **fields)
    _, many = run(tmp_path, 40, **{**fields, "generator": {"kind": "test_generate:Slow"}})
    assert Slow.most[0] > 1
    assert [row["completion"] for row in one.rows()] == [row["completion"] for row in many.rows()]


def test_a_stage_whose_gates_let_nothing_through_says_which(tmp_path):
    with pytest.raises(StageError, match=r"no row was accepted \(barren.*too_short"):
        run(tmp_path, target=10, steps=[{"kind": "length", "field": "completion", "min_words": 500}])


def test_faults_of_a_recipe_are_found_before_anything_runs(tmp_path):
    faulty = recipe(tmp_path, generator=None, steps=[{"kind": "length"}])
    with pytest.raises(RecipeError) as found:
        tilth.load(faulty)
    where = {problem.where for problem in found.value.problems}
    assert where == {"stages.made.generator", "stages.made.target", "stages.made.steps.0.field"}


def test_rows_of_another_type_are_refused(tmp_path):
    fields = recipe(tmp_path, target=5)
    fields["stages"]["seeds"]["row"] = "labelled"
    fields["stages"]["seeds"]["source"]["columns"] = {"text": "prompt", "label": "completion"}
    with pytest.raises(StageError, match=r"starts from completion or text rows, but @seeds holds labelled rows"):
        tilth.run(fields, tmp_path / "out")


@pytest.mark.parametrize(
    "step",
    [pytest.param(41, marks=pytest.mark.long), pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_killed_at_any_durable_write_a_second_run_gives_the_same_bytes(step, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, target=25, round_rows=16, unit_rows=2)))
    (tmp_path / "runs").mkdir()
    command = [sys.executable, str(HERE / "run_and_die.py"), str(path), str(tmp_path / "runs"), str(step)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    points, expected = int(done.stdout), final(tmp_path / "runs/whole")
    assert points > 60
    for point in range(0, points, step):
        assert final(tmp_path / f"runs/{point}") == expected, f"killed at durable write {point} of {points}"


@pytest.mark.slow
def test_on_ray_the_driver_killed_midway_loses_and_doubles_nothing(tmp_path):
    fields = recipe(
        tmp_path,
        60,
        method={"kind": "test_generate:Titles"},
        generator={"kind": "test_generate:Slow", "seconds": 0.4},
        unit_rows=2,
        resources={"workers": 2},
    )
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(fields))
    command = [sys.executable, "-m", "tilth", "run", str(path), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(list(out.glob("stages/made/*/rounds/*/units/0*.parquet"))) < 8 and time.monotonic() < deadline:
        assert first.poll() is None
        time.sleep(0.02)
    first.kill()
    first.wait()
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    done = Dataset.open(tilth.Run(out).current()["made"])
    assert Counter(row["parent"] for row in made_rows(done)) == {row["id"]: 1 for row in done.rows() if not row["via"]}
    assert len(made_rows(done)) == 60


def test_a_numbered_list_is_split_and_what_was_cut_off_is_known():
    text = " first task\nover two lines\n10. second task\n11) third"
    assert split_list(Completion(f"9.{text}")) == [
        ("first task over two lines", True), ("second task", True), ("third", True),
    ]  # fmt: skip
    assert split_list(Completion("1. whole\n2. cut of", "length")) == [("whole", True), ("cut of", False)]
    assert split_list(Completion("no list at all")) == [("no list at all", True)]


def test_a_probe_foretells_the_cost_and_the_report_sets_it_beside_the_actual_one(tmp_path):
    fields = recipe(tmp_path, 60, method={"kind": "test_generate:Titles"}, unit_rows=10)
    made = tilth.load(fields)
    assert "tokens" not in plan(made, tmp_path / "out")[1]["estimate"], "nothing is known before"
    tilth.run({**fields, "stages": {"seeds": fields["stages"]["seeds"]}}, tmp_path / "out")
    foretold = plan(made, tmp_path / "out", probe=True)[1]
    assert not foretold["reused"]
    assert foretold["why"] == "it has not run here yet"
    assert plan(made, tmp_path / "out")[1]["estimate"] == foretold["estimate"], "it is remembered"
    artifact = tilth.run(made, tmp_path / "out")["made"]
    actual = artifact.metrics["prompt_tokens"] + artifact.metrics["completion_tokens"]
    assert foretold["estimate"]["tokens"] == pytest.approx(actual, rel=0.25)
    assert foretold["estimate"]["rows"] == 60
    twice = tilth.load(recipe(tmp_path, 120, method={"kind": "test_generate:Titles"}, unit_rows=10))
    again = plan(twice, tmp_path / "out")[1]["estimate"]
    assert again["seconds"] == pytest.approx(2 * artifact.seconds), "twice the seeds"
    page = Path(write_report(tilth.Run(tmp_path / "out")).removeprefix("file://")).read_text()
    assert "foretold by the probe" in page
    assert f"{actual:,}" in page
