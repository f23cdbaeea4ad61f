"""How like two texts are: the share of words in common order, against the textbook's recurrence, and on long texts."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from tilth.augment.likeness import edit_similarity

words = st.lists(st.sampled_from(["card", "lost", "my", "Where", "is"]), max_size=12)


def common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence (Wagner and Fischer 1974)."""
    row = [0] * (len(other) + 1)
    for a in one:
        before = row
        row = [0]
        for index, b in enumerate(other):
            row.append(before[index] + 1 if a == b else max(before[index + 1], row[index]))
    return row[-1]


@given(words, words)
def test_it_is_twice_the_common_words_over_all(one, other):
    expected = 2 * common(one, other) / max(1, len(one) + len(other)) if one or other else 1.0
    assert abs(edit_similarity(" ".join(one).upper(), " ".join(other) + "!") - expected) < 1e-9


def test_a_long_text_of_few_words_does_not_hold_up_its_unit():
    began = time.process_time()
    assert edit_similarity("word " * 50_000, "word " * 50_000 + "x") > 0.9999
    assert edit_similarity("card is lost " * 10_000, "is my card " * 10_000) < 0.9999
    assert time.process_time() - began < 20
