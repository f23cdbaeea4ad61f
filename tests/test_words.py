"""Words with offsets, what is protected, and putting other words in."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.augment.words import protected, replace, uncapitalised, words


def kept(text: str, label: str | None = None, extra: tuple[str, ...] = ()) -> list[str]:
    found = words(text)
    return [found[index].text for index in sorted(protected(text, found, label=label, extra=extra))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I didn't pay, twice!", ["I", "didn't", "pay", "twice"]),
        ("state-of-the-art e\u0301te\u0301", ["state-of-the-art", "e\u0301te\u0301"]),
        ("see https://a.example/x?y=1, or me@b.example.", ["see", "https://a.example/x?y=1", "or", "me@b.example"]),
        ("$1,234.50 at 10:30 is 5%", ["$1,234.50", "at", "10:30", "is", "5%"]),
        ("मैंने कार्ड खोया।", ["मैंने", "कार्ड", "खोया"]),
        ("", []),
    ],
)
def test_words_are_whole(text: str, expected: list[str]) -> None:
    assert [word.text for word in words(text)] == expected


@given(st.text())
def test_offsets_are_exact_and_replacing_nothing_changes_nothing(text: str) -> None:
    found = words(text)
    assert all(text[word.start : word.end] == word.text for word in found)
    assert replace(text, found, {}) == text
    assert replace(text, found, {index: word.text for index, word in enumerate(found)}) == text


def test_facts_and_names_are_protected() -> None:
    text = "The card of Anna Berg cost 12.50 in the ATM near Oslo. Oslo is far, see www.b.example or #help."
    assert kept(text) == ["Anna", "Berg", "12.50", "ATM", "Oslo", "Oslo", "www.b.example", "#help"]


def test_a_capital_at_the_start_of_a_sentence_is_no_name() -> None:
    assert kept('Where is it? Please tell. "Perhaps here," I said.') == []


def test_capitals_say_nothing_where_all_words_have_them() -> None:
    assert kept("WHERE IS MY CARD NOW") == []
    assert kept("My New Card Never Came In 2024") == ["2024"]


def test_label_words_and_the_users_phrases_are_protected_whatever_their_capitals() -> None:
    assert kept("My card has not seen its arrival", label="card_arrival") == ["card", "arrival"]
    assert kept("A credit line is no Credit Card.", extra=("credit card", "line")) == ["line", "Credit", "Card"]


def test_replacing_keeps_capitals_and_everything_between() -> None:
    text = "The  big DOG,\n(big) barks!"
    found = words(text)
    assert replace(text, found, {0: "a", 2: "cat", 3: "small"}) == "A  big CAT,\n(small) barks!"


def test_an_empty_word_takes_one_blank_along() -> None:
    text = "Yes, my big dog."
    found = words(text)
    assert replace(text, found, {2: ""}) == "Yes, my dog."
    assert replace(text, found, {3: ""}) == "Yes, my big."
    assert replace("big dog", words("big dog"), {0: ""}) == "dog"


def test_uncapitalised_leaves_acronyms_and_the_pronoun() -> None:
    assert [uncapitalised(word) for word in ("The", "ATM", "I", "I'm", "It", "iPhone")] == [
        "the",
        "ATM",
        "I",
        "I'm",
        "it",
        "iPhone",
    ]


def test_most_words_of_real_questions_may_change(shared: Path) -> None:
    with open(shared / "data/banking77/train.csv", newline="", encoding="utf-8") as handle:
        texts = [row["text"] for row in csv.DictReader(handle)][::20]
    total = sum(len(words(text)) for text in texts)
    fixed = sum(len(protected(text, words(text), label=None)) for text in texts)
    assert 0.0 < fixed / total < 0.1
