"""Duplicates over a whole job: normal form, MinHash candidates, and who is dropped for whom."""

from __future__ import annotations

import csv
import itertools
import random

import numpy as np
import pytest

from tilth.augment.near_duplicates import NearDuplicates
from tilth.data.dedup import jaccard, normalise, shingles, text_key, words
from tilth.data.minhash import PERMUTATIONS, band_keys, band_shape, shared_buckets, signatures
from tilth.data.schema import added, original
from tilth.data.transform import Inputs
from tilth.errors import RecipeError, StageError
from tilth.kinds import load_class

LONG = "I ordered a new card two weeks ago and it has still not arrived at my home address in London"


@pytest.fixture(scope="module")
def questions(shared):
    with open(shared / "data/banking77/train.csv", newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


def child(parent, number, text):
    return added(parent, "eda", number, 1, "eda", text=text)


def reasons(rows, **options):
    return NearDuplicates(**options).decide(rows, Inputs())


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Where is my card?", "where is  my CARD"),
        ("Hello, world!", "hello world"),
        ("«Où est ma carte ?»", "où est ma carte"),
        ("\u201cYes\u201d", '"yes"'),
        ("ﬁne", "fine"),
        ("Straße", "STRASSE"),
    ],
)
def test_texts_that_differ_in_dress_only_are_one(left, right):
    assert normalise(left) == normalise(right)
    assert text_key(left) == text_key(right)


@pytest.mark.parametrize(("left", "right"), [("5-3", "5/3"), ("a + b", "a * b"), ("3.5 %", "35 %"), ("-5", "5")])
def test_marks_that_mean_something_keep_texts_apart(left, right):
    assert text_key(left) != text_key(right)


def test_a_key_of_several_texts_knows_where_one_ends():
    assert text_key("a b", "c") != text_key("a", "b c")
    assert text_key("\ud800") != text_key("x"), "a lone surrogate is a text too"


def test_scripts_without_spaces_are_split_by_character():
    assert words("我的卡 arrived") == ["我", "的", "卡", "arrived"]


def test_jaccard_of_shingles_is_that_of_the_definition():
    assert shingles("a b c d", 2) == {"a b", "b c", "c d"}
    assert shingles("a", 3) == {"a"}
    assert jaccard(shingles("a b c d", 2), shingles("a b c e", 2)) == pytest.approx(2 / 4)
    assert jaccard(frozenset(), frozenset()) == 1.0


def test_minhash_estimates_the_exact_similarity(questions):
    rng = random.Random(0)
    texts = [" ".join(rng.sample(questions, 3)) for _ in range(200)]
    pairs = [(text, " ".join([*text.split()[rng.randrange(20) :], *rng.choice(texts).split()[:9]])) for text in texts]
    exact = np.array([jaccard(shingles(a, 2), shingles(b, 2)) for a, b in pairs])
    left, right = (np.stack(list(signatures(side, 2))) for side in zip(*pairs, strict=True))
    error = (left == right).mean(axis=1) - exact
    assert exact.std() > 0.1, "the pairs span similarities"
    assert abs(error.mean()) < 0.01, "the estimate is unbiased"
    # the estimate is a mean of 128 coin tosses of probability s
    assert error.std() == pytest.approx(np.sqrt((exact * (1 - exact)).mean() / PERMUTATIONS), rel=0.2)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_find_a_pair_at_the_threshold(threshold):
    bands, rows = band_shape(threshold)
    assert bands * rows <= PERMUTATIONS
    assert 1 - (1 - threshold**rows) ** bands >= 0.99


def test_candidates_of_real_questions_hold_every_pair_that_all_pairs_find(questions):
    texts = questions[:1000]
    sets = [shingles(text, 2) for text in texts]
    truth = {(i, j) for i, j in itertools.combinations(range(len(texts)), 2) if jaccard(sets[i], sets[j]) >= 0.7}
    buckets = shared_buckets(band_keys(texts, 2, 0.7))
    found = {(i, j) for i, j in truth if set(buckets[i][buckets[i] >= 0]) & set(buckets[j][buckets[j] >= 0])}
    assert len(truth) > 10
    assert len(found) >= 0.97 * len(truth)


def test_planted_near_duplicates_are_found_and_different_texts_stay(questions):
    rng = random.Random(1)
    long = [text for text in questions if len(words(text)) >= 20][:400]
    parents = [original(f"r{i}", "train", {"text": text, "label": "x"}) for i, text in enumerate(long[:200])]
    planted = [child(row, 0, _insert(row["text"], "kindly", rng)) for row in parents]
    fresh = [child(row, 1, text) for row, text in zip(parents, long[200:], strict=True)]
    found = reasons([*parents, *planted, *fresh])
    expected = {
        row["id"]
        for row, parent in zip(planted, parents, strict=True)
        if jaccard(shingles(row["text"], 2), shingles(parent["text"], 2)) >= 0.8
    }
    assert len(expected) > 150
    assert len(expected & found.keys()) >= 0.99 * len(expected)
    sets = {row["id"]: shingles(row["text"], 2) for row in [*parents, *fresh]}
    twins = {a for a, b in itertools.permutations(sets, 2) if jaccard(sets[a], sets[b]) >= 0.8}
    assert all(row["id"] not in found for row in fresh if row["id"] not in twins)


def _insert(text, word, rng):
    parts = text.split()
    parts.insert(rng.randrange(len(parts)), word)
    return " ".join(parts)


def test_an_added_row_that_repeats_a_test_row_is_a_leak_and_is_named_so():
    train = original("a", "train", {"text": "How do I top up?", "label": "top_up"})
    test = original("z", "test", {"text": LONG, "label": "card_arrival"})
    rows = [train, test, child(train, 0, LONG + " today"), child(train, 1, LONG.upper() + " !")]
    found = reasons(rows)
    assert found == {
        "a/eda.0": f"near_duplicate: of z at {jaccard(shingles(LONG, 2), shingles(LONG + ' today', 2)):.2f} (test)",
        "a/eda.1": "duplicate: of z (test)",
    }


def test_of_two_added_twins_one_stays():
    parent = original("a", "train", {"text": "How do I top up?", "label": None})
    rows = [parent, child(parent, 1, LONG), child(parent, 0, LONG + " now"), child(parent, 2, LONG + ".")]
    found = reasons(rows)
    assert set(found) == {"a/eda.1", "a/eda.2"}, "the first by id is kept"
    assert found["a/eda.1"].startswith("near_duplicate: of a/eda.0 at 0.9")


def test_a_chain_of_small_steps_does_not_swallow_what_is_far_from_every_kept_row():
    parent = original("a", "train", {"text": "other", "label": None})
    base = LONG.split()
    steps = [" ".join([*base[n:], *(f"new{i}" for i in range(n))]) for n in range(0, 12, 2)]
    rows = [parent, *(child(parent, n, text) for n, text in enumerate(steps))]
    kept = [row for row in rows[1:] if row["id"] not in reasons(rows, threshold=0.7)]
    sets = [shingles(row["text"], 2) for row in kept]
    assert 1 < len(kept) < len(steps)
    assert all(jaccard(a, b) < 0.7 for a, b in itertools.combinations(sets, 2))


def test_the_answer_does_not_depend_on_the_order_of_rows(questions):
    rng = random.Random(2)
    parents = [original(f"r{i}", rng.choice(["train", "test"]), {"text": t}) for i, t in enumerate(questions[:300])]
    rows = parents + [child(row, n, _insert(row["text"], w, rng)) for row in parents for n, w in enumerate(("a", "b"))]
    first = reasons(rows, threshold=0.7)
    for _ in range(3):
        rng.shuffle(rows)
        assert reasons(iter(rows), threshold=0.7) == first
    assert first


def test_originals_stay_unless_told_otherwise_and_then_the_test_row_wins():
    rows = [
        original("a", "train", {"text": LONG}),
        original("b", "test", {"text": LONG}),
        original("c", "validation", {"text": LONG + " please"}),
    ]
    assert reasons(rows) == {}
    found = reasons(rows, originals=True)
    assert set(found) == {"a", "c"}
    assert found["a"] == "duplicate: of b (test)"


def test_rows_that_are_dropped_already_neither_count_nor_are_judged():
    parent = original("a", "train", {"text": "How do I top up?"})
    gone = {**child(parent, 0, LONG), "reason": "too_long: 19 words > 9"}
    assert reasons([parent, gone, child(parent, 1, LONG)]) == {}


def test_rows_pass_a_unit_untouched():
    rows = [original("a", "train", {"text": "x"})]
    assert NearDuplicates().load(Inputs(), {})(rows) is rows


def test_another_column_and_its_absence():
    rows = [original("a", "train", {"prompt": LONG, "completion": "x"})]
    assert reasons([*rows, added(rows[0], "v", 0, 1, None, prompt=LONG)], field="prompt") == {
        "a/v.0": "duplicate: of a (train)"
    }
    with pytest.raises(StageError, match="'a' has no text in column 'text'"):
        reasons(rows)


def test_the_recipe_knows_it_by_kind():
    assert load_class("transform", "near_duplicates") is NearDuplicates
    with pytest.raises((RecipeError, ValueError)):
        NearDuplicates(threshold=0.0)
