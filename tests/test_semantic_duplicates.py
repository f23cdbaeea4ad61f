"""Duplicates of meaning over a whole job, beside all pairs in plain Python on real questions."""

from __future__ import annotations

import csv
import random

import numpy as np
import pytest

from tilth.augment.semantic_duplicates import SemanticDuplicates
from tilth.data.alike import nearest_buckets, twins
from tilth.data.embeddings import DEFAULT_MODEL
from tilth.data.schema import NEW, added, generated, original
from tilth.data.transform import Inputs
from tilth.data.vectors import encoded, vectors_of
from tilth.errors import StageError
from tilth.kinds import load_class

STOLEN = "What do I do if my card was stolen?"
STOLEN_TOO = "What should I do? My card has been stolen!"
OTHER = "How do I top up my account by bank transfer?"


@pytest.fixture(scope="module")
def questions(shared):
    with open(shared / "data/banking77/train.csv", newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


def embedded(texts):
    return vectors_of(texts, DEFAULT_MODEL, Inputs(), "test")


def reasons(rows, **options):
    return SemanticDuplicates(**options).decide(rows, Inputs())


def plainly(vectors, judged, threshold):
    """Each judged vector's first earlier kept one at the threshold, by looking at all of them."""
    kept, found = [], {}
    for index, vector in enumerate(vectors.astype(np.float64)):
        near = [other for other in kept if float(vector @ vectors[other].astype(np.float64)) >= threshold]
        if judged[index] and near:
            found[index] = near[0]
        else:
            kept.append(index)
    return found


def test_buckets_of_all_rows_find_what_looking_at_every_pair_finds(questions):
    rng = random.Random(0)
    drawn = rng.sample(questions, 300)
    rows = [original(f"r{i:03d}", rng.choice(["train", "test"]), {"text": text}) for i, text in enumerate(drawn[:150])]
    rows += [added(rows[i], "v", 0, 1, None, text=text) for i, text in enumerate(drawn[150:])]
    found = reasons(rows, threshold=0.82)
    order = sorted(
        rows, key=lambda row: (row["via"] is not None, row["via"] is None and row["split"] != "test", row["id"])
    )
    expected = plainly(embedded([row["text"] for row in order]), [row["via"] is not None for row in order], 0.82)
    assert len(expected) > 15
    assert {name: why.split(" of ")[1].split(" ")[0] for name, why in found.items()} == {
        order[index]["id"]: order[twin]["id"] for index, twin in expected.items()
    }
    shuffled = rng.sample(rows, len(rows))
    assert reasons(iter(shuffled), threshold=0.82) == found


@pytest.mark.long
def test_dealt_into_buckets_nearly_every_pair_is_still_found(questions):
    vectors = embedded(questions[:1500])
    judged = np.ones(len(vectors), bool)
    exact, dealt = twins(vectors, judged, 0.9), twins(vectors, judged, 0.9, exact=200)
    buckets = nearest_buckets(vectors, 200)
    assert buckets.shape == (1500, 2)
    assert 4 <= buckets.max() < 10
    assert len(exact) > 300
    assert len(exact.keys() & dealt.keys()) >= 0.98 * len(exact)
    assert all(twin.index < index for index, twin in dealt.items())
    alike = np.array([float(vectors[index] @ vectors[twin.index]) for index, twin in dealt.items()])
    assert alike.min() >= 0.9


def test_what_is_alike_in_several_blocks_is_found_once_and_never_by_what_was_dropped():
    """Points on a circle, five thousand steps of a hundredth of a degree: each is like its nearest neighbours only."""
    angles = np.deg2rad(np.arange(5000) / 100)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = twins(vectors, np.ones(5000, bool), float(np.cos(np.deg2rad(1.005))))
    kept = sorted(set(range(5000)) - found.keys())
    assert kept == list(range(0, 5000, 101))
    assert all(twin.index in kept for twin in found.values())


def test_a_row_that_says_a_test_row_in_other_words_is_a_leak_and_is_named_so():
    train = original("a", "train", {"text": OTHER})
    test = original("z", "test", {"text": STOLEN})
    rows = [train, test, added(train, "v", 0, 1, None, text=STOLEN_TOO), added(train, "v", 1, 1, None, text="Hello")]
    found = reasons(rows, threshold=0.9)
    assert set(found) == {"a/v.0"}
    assert found["a/v.0"].startswith("semantic_duplicate: of z (test) at 0.9")


def test_equal_texts_are_duplicates_at_the_highest_threshold():
    parent = original("a", "train", {"text": OTHER})
    rows = [parent, *(added(parent, "v", n, 1, None, text=STOLEN) for n in range(3))]
    assert set(reasons(rows, threshold=1.0)) == {"a/v.1", "a/v.2"}


def test_originals_stay_unless_told_otherwise_and_then_the_test_row_wins():
    rows = [original("a", "train", {"text": STOLEN}), original("b", "test", {"text": STOLEN_TOO})]
    assert reasons(rows, threshold=0.9) == {}
    assert set(reasons(rows, threshold=0.9, originals=True)) == {"a"}


def test_in_a_round_only_its_own_rows_are_judged():
    def made(name, text, new):
        row = generated(name, "m", 1, None, {"messages": [{"role": "user", "content": text}]})
        return {**row, NEW: new}

    rows = [made("m-001.0", STOLEN_TOO, True), made("m-002.0", STOLEN, False), made("m-001.1", OTHER, True)]
    assert set(reasons(rows, field="messages", threshold=0.9)) == {"m-001.0"}


def test_rows_that_are_dropped_neither_count_nor_are_judged():
    parent = original("a", "train", {"text": OTHER})
    gone = {**added(parent, "v", 0, 1, None, text=STOLEN), "reason": "too_long: 9 words > 8"}
    assert reasons([parent, gone, added(parent, "v", 1, 1, None, text=STOLEN)]) == {}


def test_a_row_without_the_column_ends_the_stage():
    rows = [original("a", "train", {"prompt": "x", "completion": "y"})]
    with pytest.raises(StageError, match="'a' has no text in column 'text'; set `field`"):
        reasons(rows)


@pytest.mark.long
def test_tasks_of_a_cluster_make_the_same_vectors(ray_session):
    texts = [STOLEN, STOLEN_TOO, OTHER]
    here, there = (list(encoded(texts, DEFAULT_MODEL, Inputs(), None, spread=spread)) for spread in (False, True))
    assert np.allclose(np.concatenate(here), np.concatenate(there), atol=1e-6)


def test_the_recipe_knows_it_by_kind():
    assert load_class("transform", "semantic_duplicates") is SemanticDuplicates
    rows = [original("a", "train", {"text": "x"})]
    assert SemanticDuplicates().load(Inputs(), {})(rows) is rows
