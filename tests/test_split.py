"""Splitting and sampling by hash: stable, exact where stratified, independent of order."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.data.drawing import drawn, not_sampled, places, stratified
from tilth.data.schema import SPLITS
from tilth.data.split import Sampling, Split, place

IDS = {f"row{n}": n % 7 for n in range(5000)}


def assign(labels: dict[str, int], split: Split) -> dict[str, str]:
    """The split of each id."""
    roots = sorted(labels, key=lambda root: place(split.seed, root, "split"))
    codes = np.array([labels[root] for root in roots], np.int32)
    found = stratified(codes, split) if split.stratify else drawn(roots, split)
    return {root: SPLITS[code] for root, code in zip(roots, found, strict=True)}


def test_places_are_uniform():
    tenths = Counter(int(10 * place(0, f"{n}", "split")) for n in range(10_000))
    assert set(tenths) == set(range(10))
    assert all(abs(count - 1000) < 4 * 30 for count in tenths.values())  # four standard deviations


def test_many_places_are_those_of_each():
    roots = ["", "a", "é\n", "日本", "\ud800", *IDS]
    assert places(3, roots, "split").tolist() == [place(3, root, "split") for root in roots]
    assert places(3, [], "split").tolist() == []


def test_shares_come_out_within_sampling_error():
    counts = Counter(assign(IDS, Split(test=0.2, validation=0.1)).values())
    for split, share in (("test", 0.2), ("validation", 0.1), ("train", 0.7)):
        assert abs(counts[split] - share * 5000) < 4 * (5000 * share * (1 - share)) ** 0.5


def test_growing_data_moves_no_row():
    split = Split(test=0.2, validation=0.1, seed=3)
    before = assign(dict(list(IDS.items())[:1000]), split)
    after = assign(IDS, split)
    assert before == {row: after[row] for row in before}


def test_stratified_holds_out_the_share_of_every_label_exactly():
    labels = {f"r{n}": int(n >= 10) for n in range(1010)}
    found = assign(labels, Split(test=0.2, validation=0.1, stratify=True))
    by_label = Counter((labels[row], split) for row, split in found.items())
    assert by_label == {
        (0, "test"): 2, (0, "validation"): 1, (0, "train"): 7,
        (1, "test"): 200, (1, "validation"): 100, (1, "train"): 700,
    }  # fmt: skip


@pytest.mark.parametrize("stratify", [False, True])
def test_order_of_rows_does_not_count_and_seeds_do(stratify):
    shuffled = list(IDS.items())
    random.Random(0).shuffle(shuffled)
    split = Split(test=0.3, stratify=stratify)
    assert assign(dict(shuffled), split) == assign(IDS, split)
    assert assign(IDS, Split(test=0.3, seed=1, stratify=stratify)) != assign(IDS, split)


def test_no_share_means_training_only():
    assert set(assign(IDS, Split()).values()) == {"train"}


def test_shares_must_leave_something_to_train_on():
    assert Split(test=0.5, validation=0.4).check() == []
    assert "leave nothing for training" in Split(test=0.5, validation=0.5).check()[0].what


@given(st.integers(0, 60), st.floats(0, 0.49), st.floats(0, 0.49))
def test_stratified_quotas_are_nearest_to_the_shares(rows, test, validation):
    found = Counter(
        assign({str(n): 0 for n in range(rows)}, Split(test=test, validation=validation, stratify=True)).values()
    )
    assert found.total() == rows
    assert abs(found["test"] - rows * test) <= 0.5 + 1e-9
    assert abs(found["test"] + found["validation"] - rows * (test + validation)) <= 0.5 + 1e-9


# sampling

ROWS = [(f"r{n}", "test" if n % 5 == 0 else "train", n % 7) for n in range(700)]
LABELS = [f"label{n}" for n in range(7)]


def kept(sampling: Sampling) -> list[tuple[str, str, int]]:
    rows = sorted(ROWS, key=lambda row: place(sampling.seed, row[0], "sample"))
    splits = np.array([SPLITS.index(split) for _, split, _ in rows], np.int8)
    left = not_sampled(splits, np.array([label for *_, label in rows], np.int32), LABELS, sampling)
    return [row for row, why in zip(rows, left, strict=True) if not why]


def test_per_label_takes_so_many_of_each_and_leaves_the_test_alone():
    rows = kept(Sampling(per_label=10))
    assert Counter(label for _, split, label in rows if split == "train") == dict.fromkeys(range(7), 10)
    assert sum(split == "test" for _, split, _ in rows) == 140


def test_labels_hold_in_every_split_and_rows_bounds_each_split():
    rows = kept(Sampling(labels=("label1", "label2"), rows=30, splits=("train", "test")))
    assert {label for *_, label in rows} == {1, 2}
    assert Counter(split for _, split, _ in rows) == {"train": 30, "test": 30}


def test_a_larger_sample_contains_the_smaller_one():
    small, large = (set(kept(Sampling(per_label=n))) for n in (5, 20))
    assert small < large
