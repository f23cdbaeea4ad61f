"""Contextual augmentation with real models, held against plain transformers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from proposing import CAUSAL, blanks_of, masked_bert, questions, resolved
from tilth.augment.base import Sample
from tilth.augment.contextual import Contextual, Sampling
from tilth.augment.edits import FUNCTION_WORDS, NEGATIONS, Editor
from tilth.augment.proposers import Blank, CausalLM, MaskedLM, Proposed, Proposer, Request
from tilth.augment.words import protected, words
from tilth.data.schema import Row, original
from tilth.data.transform import Inputs, Transform
from tilth.errors import ModelError


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_bert(tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module")
def causal() -> Path:
    return resolved(CAUSAL)


@pytest.fixture(scope="module")
def rows(shared: Path) -> list[Row]:
    return questions(shared, 800)


def row(text: str, label: str | None = None, row_id: str = "one") -> Row:
    return original(row_id, "train", {"text": text, "label": label})


def added(config: Transform, rows: list[Row]) -> list[Row]:
    return [made for made in config.load(Inputs(), {})(rows) if made["parent"]]


def whole_words(text: str) -> list[str]:
    return [word.text for word in words(text)]


def test_a_causal_proposer_scores_the_word_and_what_follows_it(causal: Path) -> None:
    text = "Why was my card payment declined at the shop yesterday?"
    request = Request(text, blanks_of(text, "card", "declined"))
    other = Request("It has not come. " + text, ())
    propose = CausalLM(model=str(causal), scored=4, right_tokens=3).load_proposals(Inputs())
    [found, _] = propose([request, other], 4)

    tokenizer, model = (
        AutoTokenizer.from_pretrained(causal),
        AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float32),
    )
    assert all(item.words for item in found)
    for proposed, old in zip(found, ("card", "declined"), strict=True):
        left = len(tokenizer(text[: text.index(old) - 1])["input_ids"])
        pairs = [*zip(proposed.words, proposed.scores, strict=True), (old, proposed.original)]
        for word, score in pairs:
            ids = tokenizer(text.replace(old, word), return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                logs = torch.log_softmax(model(ids).logits[0].float(), dim=-1)
            span = range(left, left + 4)
            assert score == pytest.approx(sum(logs[at - 1, ids[0, at]].item() for at in span), abs=1e-3)


@pytest.mark.parametrize("action", ["substitute", "insert", "delete"])
def test_a_row_gives_the_same_variant_in_any_batch(action: str, masked: Path, rows: list[Row]) -> None:
    config = Contextual(proposer=MaskedLM(model=str(masked)), action=action, edits=0.3, variants=2)
    together = {made["id"]: made["text"] for made in added(config, rows)}
    augment = config.load(Inputs(), {})
    alone = {made["id"]: made["text"] for item in rows for made in augment([item]) if made["parent"]}
    small = config.model_copy(update={"proposer": MaskedLM(model=str(masked), batch_tokens=48)})
    assert together == alone
    assert together == {made["id"]: made["text"] for made in added(small, rows[::-1])}


@pytest.mark.long
def test_a_row_gives_the_same_variant_in_any_batch_of_a_causal_model(causal: Path, rows: list[Row]) -> None:
    augment = Contextual(proposer=CausalLM(model=str(causal), scored=4, right_tokens=2)).load(Inputs(), {})
    together = [made["text"] for made in augment(rows[:4]) if made["parent"]]
    alone = [made["text"] for item in rows[:4] for made in augment([item]) if made["parent"]]
    assert together == alone


def test_substitution_changes_whole_words_and_no_protected_one(masked: Path, rows: list[Row]) -> None:
    mine = [*rows, row("On Monday Anna paid 25.50 EUR to www.shop.example, not to me.", "cash_payment")]
    config = Contextual(proposer=MaskedLM(model=str(masked)), edits=0.5, variants=2, protect=("account",))
    for made in added(config, mine):
        parent = next(item for item in mine if item["id"] == made["parent"])
        before, after = whole_words(parent["text"]), whole_words(made["text"])
        kept = protected(parent["text"], words(parent["text"]), label=parent["label"], extra=("account",))
        assert len(before) == len(after)
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        assert not {index for index, (old, new) in enumerate(zip(before, after, strict=True)) if old != new} & kept
        assert changed == [(edit["old"], edit["new"]) for edit in made["meta"].get("edits", [])]
        for old, new in changed:
            assert old.casefold() != new.casefold()
            assert old[0].isupper() == new[0].isupper()
            assert {old.casefold(), new.casefold()}.isdisjoint(FUNCTION_WORDS | NEGATIONS)
            assert new.replace("'", "").isalpha()


def test_the_score_is_how_much_more_likely_the_new_word_is(causal: Path) -> None:
    config = Contextual(proposer=CausalLM(model=str(causal)), sampling=Sampling(top_k=1, rounds=1), max_edits=1)
    [made] = added(config, [row("She drank a cup of banana with milk and sugar.")])
    [edit] = made["meta"]["edits"]
    text, start = "She drank a cup of banana with milk and sugar.", 0
    start = text.index(edit["old"])
    blank = Blank(start, start + len(edit["old"]), FUNCTION_WORDS, capitals=False)
    [[proposed]] = config.proposer.load_proposals(Inputs())([Request(text, (blank,))], 8)
    assert proposed.original is not None
    score = proposed.scores[proposed.words.index(edit["new"])]
    assert edit["score"] == pytest.approx(score - proposed.original, abs=2e-3)


def test_insertion_adds_words_between_the_others(masked: Path, rows: list[Row]) -> None:
    config = Contextual(proposer=MaskedLM(model=str(masked)), action="insert", max_edits=2)
    for made, parent in zip(added(config, rows), rows, strict=True):
        edits = made["meta"]["edits"]
        after = whole_words(made["text"])
        assert len(after) == len(whole_words(parent["text"])) + len(edits)
        for edit in edits:
            assert edit["old"] == ""
            after.remove(edit["new"])
        assert after == whole_words(parent["text"])
        assert made["text"].count("  ") == parent["text"].count("  ")


def test_insertion_leaves_a_protected_phrase_whole(masked: Path) -> None:
    config = Contextual(proposer=MaskedLM(model=str(masked)), action="insert", edits=1.0, protect=("credit card fee",))
    for made in added(
        config, [row("they charged a credit card fee on this account again", None, str(i)) for i in "abc"]
    ):
        assert "credit card fee" in made["text"]


def test_deletion_takes_the_words_that_the_model_expects_most(masked: Path) -> None:
    text = "please tell me where my new plastic card was finally delivered yesterday"
    proposer = MaskedLM(model=str(masked))
    config = Contextual(proposer=proposer, action="delete", edits=0.25, function_words=True)
    [made] = added(config, [row(text)])
    gone = [edit["old"] for edit in made["meta"]["edits"]]
    assert made["text"].split() == [word for word in text.split() if word not in gone]
    assert len(gone) == 3
    assert all(edit["new"] == "" and edit["score"] < 0 for edit in made["meta"]["edits"])


@pytest.mark.parametrize("action", ["substitute", "delete"])
def test_of_variants_with_the_same_words_one_is_kept(action: str) -> None:
    """Two words are free, and the proposer knows one other."""

    def propose(requests: Sequence[Request], wanted: int) -> list[list[Proposed]]:
        return [[Proposed(("parcel",), (-1.0,), -1.0, -1.0) for _ in request.blanks] for request in requests]

    config = Contextual(proposer=MaskedLM(model="none"), action=action, variants=8, max_edits=1)
    item = row("where is my card now", "card")
    sample = Sample(item["id"], item["text"], item["label"], random.Random(0), item)
    [variants] = Editor(config, propose)([sample])
    first: dict[str, int] = {}
    for number, variant in enumerate(variants):
        same = first.setdefault(variant.text, number)
        assert variant.reason == (None if same == number else f"duplicate: the same words as variant {same}")
        assert variant.meta["edits"]
    assert len(first) < 8


@pytest.mark.parametrize(("text", "label"), [("Why not?", None), ("12 34", None), ("card?", "card")])
def test_a_row_without_a_free_word_is_named_unchanged(text: str, label: str | None, masked: Path) -> None:
    [made] = added(Contextual(proposer=MaskedLM(model=str(masked))), [row(text, label)])
    assert made["reason"] == "unchanged: no word is free to change"
    assert made["text"] == text


def test_a_causal_model_is_no_masked_one(causal: Path) -> None:
    with pytest.raises(ModelError, match="causal_lm"):
        MaskedLM(model=str(causal)).load_proposals(Inputs())


def test_more_edits_at_least_than_at_most_is_a_problem() -> None:
    stage = {
        "kind": "augment",
        "input": "@rows",
        "steps": [
            {"kind": "contextual", "min_edits": 5, "max_edits": 2, "proposer": {"kind": "causal_lm", "model": "m"}}
        ],
    }
    step = Transform.model_validate(stage["steps"][0])
    assert isinstance(step, Contextual)
    assert isinstance(step.proposer, Proposer)
    assert [problem.where for problem in step.check()] == ["min_edits"]


def test_draws_follow_the_probabilities(masked: Path) -> None:
    """Over many rows with one text, the words drawn come as often as the model says."""
    text = "my card is broken"
    config = Contextual(
        proposer=MaskedLM(model=str(masked)),
        min_edits=1,
        max_edits=1,
        sampling=Sampling(top_k=3, top_p=1.0, temperature=1),
    )
    made = added(config, [row(text, "card", str(number)) for number in range(600)])
    drawn = [item["meta"]["edits"][0]["new"] for item in made]
    avoid = FUNCTION_WORDS | NEGATIONS | {"card", "is", "broken"}
    blank = Blank(text.index("broken"), len(text), frozenset(avoid), capitals=False)
    [[proposed]] = config.proposer.load_proposals(Inputs())([Request(text, (blank,))], 3)
    total = sum(math.exp(score) for score in proposed.scores)
    for word, score in zip(proposed.words, proposed.scores, strict=True):
        share = math.exp(score) / total
        assert drawn.count(word) / 600 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 600) + 1e-9)
