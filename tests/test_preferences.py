"""Preference pairs: the best beside the worst, ties and lone answers by name, judges with and without habits."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tilth
from tilth.data.dataset import Dataset
from tilth.data.schema import Row
from tilth.data.transform import Inputs
from tilth.errors import RecipeError, StageError
from tilth.generate.base import Answer, Completion, Generate, Generator, Prompt
from tilth.generate.judges import Contest, Pairwise, position_bias, transcript

SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


class Writer(Generator):
    """Answers a prompt "a|b|c" with a, b and c; those that end in … as cut off; "!" fails."""

    def load(self, inputs: Inputs) -> Generate:
        def answer(prompt: Prompt) -> Answer:
            said = prompt.messages[-1]["content"]
            if said == "!":
                return Answer((), 3, 0, "http: gave up")
            texts = (said.split("|") * prompt.n)[: prompt.n]
            return Answer(tuple(Completion(t, "length" if t.endswith("…") else "stop", 1) for t in texts), 3, prompt.n)

        return lambda prompts: [answer(prompt) for prompt in prompts]


class Reader(Generator):
    """Judges by length: names the longer answer, marks by it; "first" always names A, "mute" says nothing fit."""

    habit: str = "length"
    retries: int = 0

    def load(self, inputs: Inputs) -> Generate:
        def answer(prompt: Prompt) -> Answer:
            said = prompt.messages[-1]["content"]
            if self.habit == "mute":
                return Answer((Completion("I would rather not", "stop", 4),), 9, 4)
            texts = re.findall(r"\[Answer(?: [AB])?\]\n(.*?)\n\n", said, re.DOTALL)
            if len(texts) == 1:
                return Answer((Completion(str(min(5, len(texts[0]))), "stop", 1),), 9, 1)
            a, b = map(len, texts)
            word = "A" if self.habit == "first" or a > b else "B" if b > a else "tie"
            return Answer((Completion(word, "stop", 1),), 9, 1)

        return lambda prompts: [answer(prompt) for prompt in prompts]


WRITER, READER = "test_preferences:Writer", "test_preferences:Reader"


def recipe(folder: Path, rows: Sequence[dict[str, Any]], row: str = "text", **method: Any) -> dict[str, Any]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    here = {"workers": 0}
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl")}
    judge = {"kind": "pairwise", "generator": {"kind": READER}}
    return {
        "name": "preferred",
        "stages": {
            "data": {"kind": "data", "row": row, "source": source, "resources": here},
            "made": {
                "kind": "generate",
                "data": "@data",
                "method": {"kind": "preferences", "judge": judge, **method},
                "generator": {"kind": WRITER},
                "max_quarantined": 1,
                "resources": here,
            },
        },
    }


def run(folder: Path, *texts: str, **method: Any) -> tuple[Any, list[Row], list[Row]]:
    artifact = tilth.run(recipe(folder, [{"text": text} for text in texts], **method), folder / "out")["made"]
    done = Dataset.open(artifact)
    return artifact, list(done.rows()), list(done.rejected_rows())


def test_the_best_goes_beside_the_worst_with_every_score(tmp_path):
    artifact, [row], dropped = run(tmp_path, "bb|dddd|a|ccc")
    assert dropped == []
    assert artifact.detail["row_type"] == "preference"
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("bb|dddd|a|ccc", "dddd", "a")
    meta = row["meta"]
    assert meta["scores"] == [0.3333, 1.0, 0.0, 0.6667]
    assert meta["ranks"] == [1, 3, 0, 2]
    assert meta["margin"] == 1.0
    assert meta["samples"] == {"asked": 4, "given": 4}
    assert meta["judge"] == f"pairwise: {READER}"
    assert meta["judged"] == {"pairs": 6, "flipped": 0, "first": 0, "unjudged": 0}
    # the writer's 3 and 4 tokens, and twelve comparisons of 9 and 1
    assert meta["usage"] == {"prompt_tokens": 3 + 12 * 9, "completion_tokens": 4 + 12}
    assert artifact.metrics["completion_tokens"] == 16


def test_what_gives_no_pair_is_dropped_by_name(tmp_path):
    texts = ("same|same|same|same", "aa|bb|cc|dd", "one|two…|three…|…", "!", "a|bbb| |a")
    _, kept, dropped = run(tmp_path, *texts)
    found = {row["prompt"]: row for row in dropped}
    assert found["same|same|same|same"]["reason"] == "too_few: 1 of 4 answers can be compared"
    assert found["aa|bb|cc|dd"]["reason"] == "tie: margin 0 < 0.01"
    assert found["one|two…|three…|…"]["meta"]["samples"] == {"asked": 4, "given": 4, "cut_off": 3}
    assert found["!"]["reason"] == "quarantined/http: gave up"
    assert [(row["chosen"], row["rejected"]) for row in kept] == [("bbb", "a")]
    assert kept[0]["meta"]["samples"] == {"asked": 4, "given": 4, "empty": 1, "repeated": 1}


def test_a_margin_that_is_too_small_is_a_tie(tmp_path):
    _, kept, [row] = run(tmp_path, "a|bb|cc|dd", "a|bb|ccc|dddd", min_margin=0.9)
    assert [pair["chosen"] for pair in kept] == ["dddd"]
    assert row["reason"] == "tie: margin 0.6667 < 0.9"
    assert (row["chosen"], row["rejected"]) == ("bb", "a"), "kept with the reason, to be looked at"


def test_the_rows_own_answer_may_compete(tmp_path):
    given = [{"prompt": "a|bb", "completion": "a long answer"}]
    artifact = tilth.run(recipe(tmp_path, given, "completion", n=2, include_reference=True), tmp_path / "out")["made"]
    [row] = Dataset.open(artifact).rows()
    assert (row["chosen"], row["rejected"]) == ("a long answer", "a")
    assert row["meta"]["ranks"] == ["reference", 1, 0]


def test_conversations_end_before_the_answer_that_is_asked_for(tmp_path):
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "a|bb"},
        {"role": "assistant", "content": "own"},
    ]
    given = [{"messages": turns}, {"messages": turns[:3]}]
    artifact = tilth.run(recipe(tmp_path, given, "chat", n=2), tmp_path / "out")["made"]
    rows = list(Dataset.open(artifact).rows())
    assert [row["prompt"] for row in rows] == ["Human: Hello\n\nAssistant: Hi\n\nHuman: a|bb\n\nAssistant:"] * 2
    assert {(row["chosen"], row["rejected"]) for row in rows} == {("bb", "a")}
    assert transcript(user("alone")) == "alone"


def test_a_judge_that_always_names_the_first_decides_nothing_and_is_found_out(tmp_path):
    judge = {"kind": "pairwise", "generator": {"kind": READER, "habit": "first"}}
    honest = {"kind": "pairwise", "generator": {"kind": READER}}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(StageError, match=r"no row was accepted .*2 tie"):
        run(tmp_path / "a", "a|bb", "ccc|d", judge=judge, n=2)
    artifact, kept, _ = run(tmp_path / "b", "a|bb", "ccc|d", judge=honest, n=2)
    assert len(kept) == 2
    assert artifact.metrics["position_bias"] == 0
    contests = [Contest(user("q"), ("a", "bb", "ccc"))]
    [found] = Pairwise(generator=Reader(habit="first")).load(Inputs())(contests)
    assert found.scores == (0.5, 0.5, 0.5)
    assert position_bias(found.figures) == {"position_bias": 1.0, "first_place": 1.0}


def test_position_bias_counts_the_pairs_of_dropped_rows_too(tmp_path):
    """The rows that the place decided are the ties: a figure of the kept ones alone would be flattering."""

    class Moody(Reader):
        def load(self, inputs: Inputs) -> Generate:
            honest, biased = Reader().load(inputs), Reader(habit="first").load(inputs)
            return lambda prompts: [
                (biased if "bias" in str(prompt.messages) else honest)([prompt])[0] for prompt in prompts
            ]

    globals()["Moody"] = Moody
    Moody.__qualname__ = "Moody"
    judge = {"kind": "pairwise", "generator": {"kind": "test_preferences:Moody"}}
    artifact, kept, dropped = run(tmp_path, "a|bb", "a bias|bias", "ccc|d", "c|dd", judge=judge, n=2)
    assert (len(kept), len(dropped)) == (3, 1)
    assert artifact.metrics["position_bias"] == 0.25
    assert artifact.metrics["first_place"] == 1.0


@pytest.mark.parametrize("kind", ["pairwise", "aspects"])
def test_a_judge_that_says_nothing_fit_judges_nothing(kind, tmp_path):
    judge = {"kind": kind, "generator": {"kind": READER, "habit": "mute"}}
    with pytest.raises(StageError, match="1 quarantined/judge"):
        run(tmp_path, "a|bb", judge=judge, n=2)


def test_what_cannot_give_a_pair_is_said_before_a_model_is_asked(tmp_path):
    with pytest.raises(RecipeError, match=r"method\.n: one answer has nothing to be compared with"):
        run(tmp_path, "a|bb", n=1)
    cold = recipe(tmp_path, [{"text": "a|bb"}])
    cold["stages"]["made"]["generator"]["sampling"] = {"temperature": 0}
    with pytest.raises(StageError, match="at temperature 0 all answers are the same"):
        tilth.run(cold, tmp_path / "cold")


def test_rows_in_which_nobody_asks_are_dropped_by_name_however_many(tmp_path):
    asking = [[{"role": "user", "content": "a|bb"}, {"role": "assistant", "content": "c"}]]
    silent = [[{"role": role, "content": f"{role} {n}"}] for role in ("system", "assistant") for n in range(2)]
    made = recipe(tmp_path, [{"messages": turns} for turns in (*asking, *silent)], "chat", n=2)
    done = Dataset.open(tilth.run(made, tmp_path / "out")["made"])
    assert [row["chosen"] for row in done.rows()] == ["bb"]
    assert [row["reason"].partition(":")[0] for row in done.rejected_rows()] == ["no_question"] * 4


def test_a_dry_run_on_real_prompts_accounts_for_every_row(shared, tmp_path):
    with open(shared / "data/gsm8k/test.jsonl", encoding="utf-8") as file:
        rows = [{"prompt": row["question"], "completion": row["answer"]} for row in map(json.loads, list(file)[:30])]
    echo = {"kind": "echo", "truncated": 0.2, "failing": 0.1}
    made = recipe(tmp_path, rows, "completion", judge={"kind": "aspects", "generator": {"kind": "echo"}})
    made["stages"]["made"]["generator"] = echo
    artifact = tilth.run(made, tmp_path / "out")["made"]
    done = Dataset.open(artifact)
    every = [*done.rows(), *done.rejected_rows()]
    assert len({row["parent"] for row in every}) == len(every) == 30
    assert all(row["meta"]["samples"]["asked"] == 4 for row in every)
    assert {row["meta"]["samples"]["given"] for row in every} == {0, 4}
    assert len(done) > 10
    assert all(row["chosen"] != row["rejected"] for row in done.rows())


def test_the_recipe_of_the_examples_runs_dry(root, tmp_path):
    before = Path.cwd()
    os.chdir(root)
    try:
        echo = "{kind: echo}"
        dry = (f"stages.pairs.generator={echo}", f"stages.pairs.method.judge.generator={echo}")
        found = tilth.run("examples/recipes/preferences.yaml", tmp_path, *dry, "stages.pairs.resources.workers=0")
    finally:
        os.chdir(before)
    done = Dataset.open(found["pairs"])
    assert len(done) + len(list(done.rejected_rows())) == 10
    assert all(len(row["meta"]["scores"]) == 5 for row in done.rows()), "four answers and the row's own"


@pytest.mark.slow
def test_a_small_model_writes_and_judges(shared, tmp_path):
    with open(shared / "data/self-instruct/seed_tasks.jsonl", encoding="utf-8") as file:
        rows = [{"text": json.loads(line)["instruction"]} for line, _ in zip(file, range(6), strict=False)]
    small = {"kind": "hf", "model": SMALL, "sampling": {"max_tokens": 48, "temperature": 1.0}}
    judge = {"kind": "aspects", "generator": {"kind": "hf", "model": SMALL}, "aspects": {"helpful": "It helps."}}
    made = recipe(tmp_path, rows, n=3, judge=judge, min_margin=0)
    made["stages"]["made"]["generator"] = {**small, "sampling": {"max_tokens": 96, "temperature": 1.0}}
    try:
        done = Dataset.open(tilth.run(made, tmp_path / "out")["made"])
    except StageError as error:
        pytest.fail(f"of six prompts none gave a pair: {error}")
    every = [*done.rows(), *done.rejected_rows()]
    assert len(every) == 6
    assert all(row["meta"]["samples"]["given"] == 3 for row in every)
    for row in done.rows():
        assert row["chosen"] != row["rejected"]
        assert set(row["meta"]["scores"]) <= {1.0, 2.0, 3.0, 4.0, 5.0}
        assert row["meta"]["margin"] >= 1
