"""Cleaning texts: what it changes, what it leaves alone."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.data.clean import Cleaning, clean_text, clean_value

HOWS = [
    Cleaning(unicode=unicode, whitespace=whitespace, control=control)
    for unicode in ("NFC", "NFKC", "keep")
    for whitespace in ("trim", "collapse", "keep")
    for control in ("drop", "keep")
]


@pytest.mark.parametrize(
    ("text", "how", "cleaned"),
    [
        ("cafe\u0301", {}, "café"),
        ("ﬁne", {}, "ﬁne"),
        ("ﬁne", {"unicode": "NFKC"}, "fine"),
        ("  two\r\nlines\r ", {}, "two\nlines"),
        ("def f():\n    return 1", {}, "def f():\n    return 1"),
        ("    return 1\n", {"whitespace": "keep"}, "    return 1\n"),
        ("a \t b\u00a0 c\n d", {"whitespace": "collapse"}, "a b c\n d"),
        ("\ufeffbell\x07 tab\t esc\x1b[0m", {}, "bell tab\t esc[0m"),
        ("bell\x07", {"control": "keep"}, "bell\x07"),
        ("👩\u200d🔬 नमस्\u200dते", {}, "👩\u200d🔬 नमस्\u200dते"),
    ],
)
def test_clean_text(text, how, cleaned):
    assert clean_text(text, Cleaning(**how)) == cleaned


@given(st.text(), st.sampled_from(HOWS))
def test_cleaning_twice_changes_nothing_more(text, how):
    once = clean_text(text, how)
    assert clean_text(once, how) == once


@given(st.text())
def test_default_result_is_composed_and_free_of_controls(text):
    cleaned = clean_text(text, Cleaning())
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not [c for c in cleaned if unicodedata.category(c) == "Cc" and c not in "\n\t"]


def test_messages_keep_their_roles():
    turns = [{"role": " user ", "content": " hi\r\n"}]
    assert clean_value(turns, Cleaning()) == [{"role": " user ", "content": "hi"}]
