"""Evaluation rows in what is made: runs of words beside a plain search, whole short rows, meaning, other datasets."""

from __future__ import annotations

import csv
import json
import random

import pytest

from helpers import write_dataset
from tilth.augment.decontaminate import Decontaminate
from tilth.config import DatasetRefStr
from tilth.data.dedup import normalise, words
from tilth.data.overlap import Index
from tilth.data.schema import generated, original
from tilth.data.transform import Inputs
from tilth.errors import RecipeError, StageError
from tilth.kinds import load_class
from tilth.recipe import load
from tilth.storage import Store

LONG = "Janet's ducks lay sixteen eggs per day and she eats three of them for breakfast every morning before work"
SHORT = "How do I activate my new card from abroad?"


@pytest.fixture(scope="module")
def problems(shared):
    lines = (shared / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def judged(rows, *texts, inputs=None, field="text", **options):
    gate = Decontaminate(**{"max_cosine": None, "field": field, **options})
    inputs = inputs or Inputs()
    new = [generated(f"m.{number}", "m", 1, None, {field: text}) for number, text in enumerate(texts)]
    return gate.load(inputs, gate.fit(rows, inputs))(new)


def reasons(rows, *texts, **options):
    return [row["reason"] for row in judged(rows, *texts, **options)]


def test(*texts):
    return [original(f"t{number}", "test", {"text": text}) for number, text in enumerate(texts)]


test.__test__ = False


def grams(text, size):
    tokens = words(normalise(text))
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}


@pytest.mark.parametrize(("size", "share"), [(13, 0.0), (8, 0.0), (8, 0.7)])
def test_runs_are_found_where_a_plain_search_finds_them(problems, size, share):
    rng = random.Random(0)
    reference = problems[:150]
    index = Index.of(reference, size, common=1000)
    truth = [grams(text, size) for text in reference]
    hits = 0
    for _ in range(150):
        tokens, other = rng.choice(problems[:300]).split(), rng.choice(problems[300:]).split()
        start = rng.randrange(len(tokens))
        text = " ".join([*other[:9], *tokens[start : start + rng.randrange(5, 90)], *other[9:]])
        shares = [len(runs & grams(text, size)) / len(runs) if runs else 0.0 for runs in truth]
        best = max(shares)
        found = index.find(text, share)
        if best == 0 or best < share:
            assert found is None
        else:
            assert found is not None
            assert found.share == pytest.approx(best)
            assert shares[found.index] == pytest.approx(best)
            hits += 1
    assert hits > 12


def test_a_row_that_holds_thirteen_words_of_a_test_row_is_dropped_and_names_it():
    piece = " ".join(LONG.split()[2:15])
    twelve = " ".join(LONG.split()[2:14])
    rows = [*test(LONG), original("a", "train", {"text": "unlike"})]
    found = reasons(rows, f"Well, {piece.upper()}!", f"Well, {twelve}", "unlike in any way")
    assert found == ["contaminated: 13 words of t0 (test)", None, None]


def test_short_rows_are_found_whole_and_tiny_ones_only_by_themselves():
    rows = test(SHORT, "Paris")
    found = reasons(rows, f"Tell me: {SHORT.lower()} Thanks", "how do i activate my card", "paris!", "Paris in spring")
    assert found == ["contaminated: 9 words of t0 (test)", None, "contaminated: all words of t1 (test)", None]


def test_with_a_share_a_single_run_is_not_enough():
    piece = " ".join(LONG.split()[:9])
    rule = {"ngram": 8, "share": 0.7}
    assert reasons(test(LONG), piece, **rule) == [None]
    found = reasons(test(LONG), " ".join(LONG.split()[1:]), **rule)[0]
    assert found == "contaminated: 8 words of t0 (test), 92% of its runs"


def test_wording_that_many_evaluation_rows_share_does_not_count():
    task = "Read the following question and answer it with one of these four letters only please"
    rows = test(*(f"{task}: question {number} on topic {number}" for number in range(12)))
    assert reasons(rows, f"{task}: something else") == [None]
    assert reasons(rows, f"{task}: something else", common=12)[0].startswith("contaminated: 13 words of t0")


def test_meaning_is_compared_too():
    rows = test("What do I do if my card was stolen?")
    near, far = judged(rows, "What should I do if my card was stolen?", "How do I top up?", max_cosine=0.9)
    assert near["reason"].startswith("contaminated: cosine 0.9")
    assert near["reason"].endswith("with t0 (test)")
    assert near["meta"]["evaluation_cosine"] >= 0.9 > far["meta"]["evaluation_cosine"]
    assert far["reason"] is None


def test_further_datasets_count_by_their_evaluation_rows_whatever_their_columns(tmp_path):
    rows = [
        original(f"e{i}", split, {"prompt": f"{text} {i}", "completion": "x"})
        for i, (split, text) in enumerate([("train", LONG), ("test", SHORT)])
    ]
    whole = [original("w", "train", {"text": "a dataset that has no split counts as a whole " * 2})]
    write_dataset(Store.at(tmp_path / "exam"), rows, "completion")
    write_dataset(Store.at(tmp_path / "plain"), whole, "text")
    inputs = Inputs({"@exam": str(tmp_path / "exam"), "@plain": str(tmp_path / "plain")})
    gate = {"against": (DatasetRefStr("@exam"), DatasetRefStr("@plain")), "inputs": inputs, "splits": ()}
    found = reasons([], f"{SHORT} 1 x", LONG, "a dataset that has no split counts as a whole a dataset that", **gate)
    assert found == [
        "contaminated: 11 words of e1 (test of @exam)", None, "contaminated: 13 words of w (train of @plain)",
    ]  # fmt: skip
    assert [ref for _, ref in Decontaminate(against=("@exam",)).refs()] == ["@exam"], "the recipe knows what it needs"


def test_token_ids_are_no_text_and_named_in_the_check_or_before_any_model_is_asked(tmp_path):
    rows = [original("p", "train", {"input_ids": [1, 2], "labels": [1, 2], "pack": "a"})]
    write_dataset(Store.at(tmp_path / "packs"), rows, "packed")
    inputs = Inputs({"@packs": str(tmp_path / "packs")})
    with pytest.raises(StageError, match=r"against is read as text, but @packs holds packed rows.*packed from"):
        reasons([], LONG, against=(DatasetRefStr("@packs"),), inputs=inputs, max_cosine=0.9, model="nobody/has-it")
    gate = {"kind": "decontaminate", "against": ["@packs"]}
    stages = {
        "data": {"kind": "data", "row": "text", "source": {"kind": "inline", "rows": [{"text": LONG}]}},
        "packs": {"kind": "pack", "data": "@data", "model": "gpt2"},
        "more": {"kind": "augment", "data": "@data", "steps": [gate]},
    }
    with pytest.raises(RecipeError, match=r'against\.0: is read as text.*@packs \(pack\).*made from: "@data"'):
        load({"name": "t", "stages": stages})
    gate["against"] = ["@data"]
    assert load({"name": "t", "stages": stages})


def test_without_evaluation_rows_the_stage_ends():
    with pytest.raises(StageError, match="no test or validation rows and `against` names no dataset"):
        reasons([original("a", "train", {"text": LONG})], LONG)


def test_real_training_questions_are_seldom_taken_for_test_questions(shared):
    """By words alone: banking77's own splits share a few questions outright."""
    texts = {}
    for split in ("train", "test"):
        with open(shared / f"data/banking77/{split}.csv", newline="", encoding="utf-8") as file:
            texts[split] = [row["text"] for row in csv.DictReader(file)]
    held_out = [original(f"t{i}", "test", {"text": text}) for i, text in enumerate(texts["test"])]
    found = [why for why in reasons(held_out, *texts["train"][:3000]) if why]
    assert len(found) < 30
    assert load_class("transform", "decontaminate") is Decontaminate


def test_a_gate_with_nothing_to_look_for_is_found_before_anything_runs():
    [problem] = Decontaminate(splits=()).check()
    assert problem.where == "against"
    assert Decontaminate().check() == Decontaminate(splits=(), against=("@exam",)).check() == []
