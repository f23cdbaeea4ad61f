"""Cutting texts into sentences, and changing whole sentences of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.augment import segments
from tilth.augment.segments import rebuild, rewrite, sentences
from tilth.augment.sentences import Sentences
from tilth.data.schema import Row, original
from tilth.data.transform import Inputs


def cut(text: str, **how: Any) -> list[str]:
    return [text[start:end] for start, end in sentences(text, **how)]


def test_sentences_end_where_a_reader_would_end_them() -> None:
    text = "I paid Dr. Smith $3.50 at 10 a.m. yesterday. It failed!  Why?\n\n  Please help..."
    assert cut(text) == ["I paid Dr. Smith $3.50 at 10 a.m. yesterday.", "It failed!", "Why?", "Please help..."]


def test_a_sentence_too_long_for_a_model_is_cut_at_a_blank() -> None:
    pieces = cut("word " * 100, longest=30)
    assert " ".join(pieces) == ("word " * 100).strip()
    assert max(map(len, pieces)) <= 30
    assert cut("x" * 70, longest=30) == ["x" * 30, "x" * 30, "x" * 10]


def test_a_long_line_is_given_to_the_segmenter_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes time by the square of what it is given; no sentence is cut where a piece ends."""
    given_lengths: list[int] = []
    segmenter = segments._segmenter("en")
    segment = segmenter.segment
    monkeypatch.setattr(segmenter, "segment", lambda piece: given_lengths.append(len(piece)) or segment(piece))
    whole = [f"Dr. Smith paid bill {n} at 10 a.m. on 3 May, and {'so ' * (n % 37)}on." for n in range(120)]
    text = "  ".join(whole)
    spans = sentences(text)
    assert [text[start:end] for start, end in spans] == whole
    assert len(text) > 4 * segments.PIECE
    assert max(given_lengths) <= segments.PIECE
    assert sum(given_lengths) < 2 * len(text)
    assert rebuild(text, spans, whole) == text


@pytest.mark.parametrize(
    "text", ["no end " * 900, "x" * 5000, "Yes. " + "no end " * 900 + "is here. Well. " + " " * 3000 + "?"]
)
def test_a_line_of_few_sentences_is_cut_as_one_too_long_for_a_model(text: str) -> None:
    pieces = cut(text, longest=30)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert max(map(len, pieces)) <= 30
    assert sum(len(piece) < 20 for piece in pieces) < 5


@given(st.text(alphabet=st.sampled_from("ab. !?\n\t\"'()…A1")))
def test_only_blanks_lie_between_sentences(text: str) -> None:
    spans = sentences(text, longest=7)
    assert rebuild(text, spans, [text[start:end] for start, end in spans]) == text
    assert not rebuild(text, spans, [""] * len(spans)).strip()
    assert all(text[start:end].strip() == text[start:end] != "" for start, end in spans)


def test_rewriting_sees_all_sentences_at_once_and_keeps_what_lies_between() -> None:
    calls: list[list[int]] = []

    def make(parts: list[str], owners: list[int]) -> list[list[str]]:
        calls.append(owners)
        return [[part.upper(), part.lower()] for part in parts]

    made = rewrite(["One. Two!\n\n Three?", "", "Four"], make, 2, "en")
    assert made == [["ONE. TWO!\n\n THREE?", "one. two!\n\n three?"], ["", ""], ["FOUR", "four"]]
    assert calls == [[0, 0, 0, 2]]


def rows() -> list[Row]:
    texts = [
        ("a", "train", "lost", "My card is lost. I cannot find the card anywhere."),
        ("b", "train", "lost", "I lost my card yesterday. Please block the card."),
        ("c", "train", "late", "The transfer has not arrived. Where is my money?"),
        ("d", "test", "lost", "Someone stole the card. It is a lost card now."),
        ("e", "train", "alone", "Hello there"),
    ]
    return [original(name, split, {"text": text, "label": label}) for name, split, label, text in texts]


def added(config: Sentences, given: list[Row]) -> dict[str, Row]:
    function = config.load(Inputs(), config.fit(rows(), Inputs()))
    return {row["id"]: row for row in function(given) if row["parent"]}


def test_each_change_does_what_it_says() -> None:
    drop = added(Sentences(changes=("drop",)), rows())["a/sentences.0"]
    assert drop["text"] in ("My card is lost.", "I cannot find the card anywhere.")
    swap = added(Sentences(changes=("swap",)), rows())["a/sentences.0"]
    assert swap["text"] == "I cannot find the card anywhere. My card is lost."
    add = added(Sentences(changes=("add",)), rows())["a/sentences.0"]
    # both of b's sentences have its label; the first shares more words
    assert "I lost my card yesterday." in add["text"]
    assert add["text"].replace("I lost my card yesterday.", "").split() == rows()[0]["text"].split()
    assert add["meta"]["change"] == "add"


def test_added_sentences_come_from_the_train_rows_of_the_label_only() -> None:
    config = Sentences(changes=("add",), variants=8)
    everything = " ".join(row["text"] for row in added(config, rows()).values() if row["label"] == "lost")
    own = {sentence for row in rows() for sentence in cut(row["text"])}
    test_only = set(cut(rows()[3]["text"]))
    children = [row for row in added(config, rows()).values() if row["root"] == "a"]
    assert "The transfer" not in everything
    assert not any(sentence in row["text"] for row in children for sentence in test_only)
    assert {sentence for row in children for sentence in own if sentence in row["text"]} <= {
        *cut(rows()[0]["text"]),
        *cut(rows()[1]["text"]),
    }


def test_nothing_to_change_is_a_reason_and_variants_are_distinct() -> None:
    made = added(Sentences(variants=3), rows())
    assert all(made[f"e/sentences.{n}"]["reason"].startswith("unchanged: ") for n in range(3))
    for name in "abcd":
        kept = [made[f"{name}/sentences.{n}"]["text"] for n in range(3) if not made[f"{name}/sentences.{n}"]["reason"]]
        assert len(kept) == len(set(kept)) >= 2


def test_the_order_of_rows_decides_nothing() -> None:
    config = Sentences(variants=4, seed=3)
    whole = added(config, rows())
    reversed_fit = config.load(Inputs(), config.fit(rows()[::-1], Inputs()))
    one_by_one = {child["id"]: child for row in rows()[::-1] for child in reversed_fit([row]) if child["parent"]}
    assert one_by_one == whole
    assert added(config.model_copy(update={"seed": 4}), rows()) != whole


def test_the_pool_is_bounded_for_each_label() -> None:
    many = [original(str(n), "train", {"text": f"Sentence {n}.", "label": "x"}) for n in range(500)]
    fitted = Sentences(pool=20).fit(many, Inputs())
    assert fitted["text"].shape == (20,)


def test_medical_contexts_keep_their_meaningful_parts(shared: Path) -> None:
    path = next((shared / "data/pubmedqa").glob("ori_pqal*.json"), None)
    if path is None:
        pytest.skip("PubMedQA is not there")
    items = list(json.loads(path.read_text()).items())[:30]
    given = [
        original(name, "train", {"text": "\n".join(item["CONTEXTS"]), "label": item["final_decision"]})
        for name, item in items
    ]
    config = Sentences(variants=3)
    made = [row for row in config.load(Inputs(), config.fit(given, Inputs()))(given) if row["parent"]]
    assert len(made) == 90
    assert all(row["reason"] is None and row["text"].count("\n") >= 1 for row in made)
