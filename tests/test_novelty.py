"""ROUGE-L novelty beside the rouge-score package and a plain longest common subsequence, on real instructions."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from tilth.augment.novelty import Novelty
from tilth.data.rouge import Nearest, Pool, rouge_l, rouge_tokens, word_tokens
from tilth.data.schema import NEW, added, generated, original
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.kinds import load_class


@pytest.fixture(scope="module")
def instructions(shared):
    lines = (shared / "data/self-instruct/seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["instruction"] for line in lines]


@pytest.fixture(scope="module")
def mixed(instructions):
    """Instructions, and others that are pieced together from two of them: every degree of likeness."""
    rng = random.Random(0)

    def pieced():
        left, right = (rng.choice(instructions).split() for _ in range(2))
        return " ".join([*left[: rng.randrange(1, len(left) + 1)], *right[rng.randrange(len(right)) :]])

    return [*instructions[:80], *(pieced() for _ in range(520))]


def subsequence(left, right):
    """Length of the longest common subsequence, by its recurrence."""
    row = [0] * (len(right) + 1)
    for word in left:
        before = row
        row = [0]
        for place, other in enumerate(right):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[place]))
    return row[-1]


def reasons(rows, **options):
    return Novelty(**options).decide(rows, Inputs())


def test_the_score_is_that_of_rouge_score_to_the_last_bit(mixed):
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    rng = random.Random(1)
    pairs = [rng.sample(mixed, 2) for _ in range(1500)]
    pairs += [("", "a"), ("...", "!"), ("Ärger über Größe", "Arger uber Grosse"), ("a", "a")]
    for left, right in pairs:
        assert rouge_l(left, right) == scorer.score(left, right)["rougeL"].fmeasure, (left, right)


def test_the_score_is_twice_the_common_subsequence_over_both_lengths(mixed):
    rng = random.Random(2)
    for left, right in (rng.sample(mixed, 2) for _ in range(200)):
        a, b = rouge_tokens(left), rouge_tokens(right)
        assert rouge_l(left, right) == pytest.approx(2 * subsequence(a, b) / (len(a) + len(b)))


@pytest.mark.parametrize("threshold", [0.4, 0.7, 0.9])
def test_a_pool_finds_what_looking_at_every_pair_finds(mixed, threshold):
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    known, new = mixed[:60], mixed[60:260]
    members, expected = list(known), []
    for text in new:
        scores = [scorer.score(other, text)["rougeL"].fmeasure for other in members]
        best = max(scores)
        expected.append(Nearest(scores.index(best), best) if best >= threshold else None)
        if best < threshold:
            members.append(text)
    pool = Pool()
    pool.take(known)
    assert pool.screen(new, threshold) == expected
    assert len(pool) == len(members)
    assert any(expected)


def test_an_instruction_that_repeats_another_is_dropped_and_names_it(instructions):
    seeds = [original(f"s{i:03d}", "train", {"prompt": text, "completion": ""}) for i, text in enumerate(instructions)]
    said = "Write a letter to the manager and ask for a raise in salary"
    made = [
        generated(f"m.{i}", "m", 1, None, {"prompt": text, "completion": ""})
        for i, text in enumerate([said, f"{said} today", instructions[3], "Zebras paint quietly"])
    ]
    found = reasons([*seeds, *made], field="prompt")
    assert set(found) == {"m.1", "m.2"}
    assert found["m.1"] == "not_novel: ROUGE-L 0.96 with m.0 (train) >= 0.7"
    assert found["m.2"] == "not_novel: ROUGE-L 1.00 with s003 (train) >= 0.7"


def test_what_stays_is_novel_and_does_not_depend_on_the_order_of_rows(mixed):
    parent = original("p", "test", {"text": "nothing like it"})
    rows = [parent, *(added(parent, "v", n, 1, None, text=text) for n, text in enumerate(mixed[:300]))]
    found = reasons(rows)
    kept = [row["text"] for row in rows if row["id"] not in found]
    assert 0 < len(found) < 300
    assert all(rouge_l(a, b) < 0.7 for a, b in itertools.combinations(kept, 2))
    random.Random(3).shuffle(rows)
    assert reasons(iter(rows)) == found


def test_in_a_round_only_its_own_rows_are_judged():
    def made(name, new):
        return {**generated(name, "m", 1, None, {"text": "name three rivers of Europe"}), NEW: new}

    assert set(reasons([made("m-002", False), made("m-001", True)])) == {"m-001"}


def test_words_of_other_scripts_count_where_they_are_asked_for():
    parent = original("p", "train", {"text": "请问我的卡现在在哪里呢"})
    rows = [
        parent,
        added(parent, "v", 0, 1, None, text="请问我的卡现在在哪里"),
        added(parent, "v", 1, 1, None, text="天气很好"),
    ]
    assert rouge_tokens("Größe 5-3") == ["gr", "e", "5", "3"]
    assert word_tokens("Größe, 我的") == ["grösse", "我", "的"]
    assert reasons(rows) == {}, "rouge-score sees nothing in them"
    assert set(reasons(rows, words="any")) == {"p/v.0"}


def test_texts_without_words_are_like_nothing():
    parent = original("p", "train", {"text": "..."})
    assert reasons([parent, *(added(parent, "v", n, 1, None, text="?!") for n in range(2))]) == {}


def test_a_row_without_the_column_ends_the_stage():
    with pytest.raises(StageError, match="'a' has no text in column 'prompt'"):
        reasons([original("a", "train", {"text": "x"})], field="prompt")
    assert load_class("transform", "novelty") is Novelty
