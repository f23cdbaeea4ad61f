"""The cheap gates: which rows they judge, their reasons, and how often they err on real texts."""

from __future__ import annotations

import csv

import pytest

from tilth.augment.filters import Language, Length
from tilth.data.schema import added, original
from tilth.data.transform import Inputs
from tilth.errors import StageError

PARENT = "What can I do if my card still has not arrived after two weeks?"


def judged(gate, *texts, parent=PARENT):
    """The rows added for `texts`, after the gate; the parent goes first and comes back first."""
    root = original("r", "train", {"text": parent, "label": None})
    rows = gate.load(Inputs(), gate.fit([root], Inputs()))([
        root, *(added(root, "v", number, 1, None, text=text) for number, text in enumerate(texts))
    ])  # fmt: skip
    assert rows[0]["id"] == "r"
    assert rows[0]["reason"] is None, "originals always stay"
    return rows[1:]


def reasons(gate, *texts, parent=PARENT):
    return [row["reason"] for row in judged(gate, *texts, parent=parent)]


def test_length_names_the_bound_that_a_text_breaks():
    gate = Length(min_words=2, max_words=20, min_ratio=0.5, max_ratio=1.4)
    assert reasons(gate, "card", "where is my card", PARENT, "word " * 20, "word " * 21) == [
        "too_short: 1 words < 2",
        "too_short: 0.29 of its parent's words < 0.5",
        None,
        "too_long: 1.43 times its parent's words > 1.4",
        "too_long: 21 words > 20",
    ]


def test_bounds_themselves_are_allowed():
    gate = Length(min_words=2, max_words=4, min_ratio=0.5, max_ratio=1.0)
    assert reasons(gate, "a b", "a b c d", parent="a b c d") == [None, None]


def test_nothing_is_too_short_by_default():
    assert reasons(Length(), "", " \n") == ["too_short: 0 words < 1"] * 2


def test_texts_without_spaces_are_measured_by_character():
    assert reasons(Length(min_ratio=0.5), "我的卡在哪里", parent="请问我的卡现在在哪里呢") == [None]


def test_bounds_that_cross_are_found_before_anything_runs():
    found = {problem.where for problem in Length(min_words=9, max_words=3, min_ratio=2.0, max_ratio=1.0).check()}
    assert found == {"min_words", "min_ratio"}
    assert Length().check() == []


def test_rows_dropped_earlier_keep_their_first_reason():
    root = original("r", "train", {"text": PARENT})
    row = {**added(root, "v", 0, 1, None, text=""), "reason": "same: as its parent"}
    assert Length().load(Inputs(), {})([root, row])[1]["reason"] == "same: as its parent"


def test_a_row_left_untranslated_is_dropped():
    french = "Que puis-je faire si ma carte n'est toujours pas arrivée après deux semaines ?"
    kept, dropped = judged(Language(languages=("en",)), "What may I do if my card has not come yet?", french)
    assert kept["reason"] is None
    assert kept["meta"] == {"language": "en"}
    assert dropped["reason"].startswith("wrong_language: looks like fr ")
    assert dropped["reason"].endswith(" < 0.3")
    assert dropped["meta"] == {"language": "fr"}


def test_without_languages_the_parent_sets_it():
    german = "Was kann ich tun, wenn meine Karte nach zwei Wochen noch nicht da ist?"
    again = "Was soll ich machen, wenn die Karte nach zwei Wochen immer noch fehlt?"
    assert reasons(Language(), again, parent=german) == [None]
    assert reasons(Language(), PARENT, parent=german)[0].startswith("wrong_language: looks like en ")


def test_a_few_words_are_not_judged():
    row = judged(Language(languages=("en",)), "Wo ist meine Karte")[0]
    assert row["reason"] is None
    assert row["meta"] == {"language": None}
    assert reasons(Language(), "Was kann ich tun, wenn meine Karte fehlt", parent="No card") == [None]


def test_an_unknown_language_code_ends_the_stage_before_any_row():
    with pytest.raises(StageError, match=r"\['english'\] cannot be identified"):
        Language(languages=("en", "english")).load(Inputs(), {})


def test_real_english_passes_and_other_languages_do_not(shared):
    with open(shared / "data/banking77/test.csv", newline="", encoding="utf-8") as file:
        english = [row["text"] for row in csv.DictReader(file)][:500]
    found = reasons(Language(languages=("en",)), *english)
    assert sum(reason is not None for reason in found) <= 5
    for language in ("de", "fr", "es"):
        foreign = (shared / f"data/flores/dev.{language}").read_text(encoding="utf-8").splitlines()[:150]
        foreign = [text for text in foreign if len(text.split()) > 5]
        assert all(reasons(Language(languages=("en",)), *foreign)), language
        own = reasons(Language(languages=("en", language)), *foreign)
        assert sum(reason is not None for reason in own) <= 3, language
