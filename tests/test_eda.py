"""Easy data augmentation with the real WordNet."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from tilth.augment.eda import Eda
from tilth.augment.wordnet import load_synonyms
from tilth.augment.words import words
from tilth.data.schema import Row, original
from tilth.data.transform import Inputs

TEXT = "Please tell Anna Berg why my payment of 12.50 was declined at the big store yesterday."


def children(config: Eda, rows: list[Row]) -> list[Row]:
    return [row for row in config.load(Inputs(), {})(rows) if row["parent"]]


def rows(*texts: str) -> list[Row]:
    return [original(f"r{n}", "train", {"text": text, "label": "declined_payment"}) for n, text in enumerate(texts)]


def tokens(text: str) -> list[str]:
    return [word.text.casefold() for word in words(text)]


def only(**rates: float) -> Eda:
    off = dict.fromkeys(("synonyms", "insertions", "swaps", "deletions"), 0.0)
    return Eda.model_validate({**off, **rates, "variants": 6})


def test_synonyms_replace_one_word_in_ten_at_least_one() -> None:
    synonyms = load_synonyms()
    for row in children(only(synonyms=0.1), rows("The big store was closed")):
        before, after = "The big store was closed", row["text"]
        [changed] = [word for word in before.split() if word not in after.split()]
        assert after.removeprefix(before.partition(changed)[0]).removesuffix(before.partition(changed)[2]) in [
            *synonyms(changed)
        ]


def test_swaps_keep_the_words_and_deletions_only_take_away() -> None:
    before = Counter(tokens(TEXT))
    assert all(Counter(tokens(row["text"])) == before for row in children(only(swaps=0.3), rows(TEXT)))
    for row in children(only(deletions=0.2), rows(TEXT)):
        assert Counter(tokens(row["text"])) < before
        assert sum(before.values()) - len(tokens(row["text"])) == int(0.2 * 15)


def test_insertions_only_add() -> None:
    for row in children(only(insertions=0.1), rows(TEXT)):
        assert Counter(tokens(row["text"])) > Counter(tokens(TEXT))


def test_facts_label_words_and_the_users_words_stay() -> None:
    config = Eda(synonyms=1, insertions=0, swaps=1, deletions=1, variants=9, protect=("big store",))
    for row in children(config, rows(TEXT)):
        for word in ("Anna", "Berg", "payment", "12.50", "declined", "big", "store"):
            assert word in row["text"]


def test_kinds_take_turns_and_lineage_says_which() -> None:
    made = children(Eda(variants=8), rows(TEXT))
    assert Counter(row["meta"]["edit"] for row in made) == dict.fromkeys(
        ("synonyms", "insertions", "swaps", "deletions"), 2
    )
    assert [row["id"] for row in made] == [f"r0/eda.{n}" for n in range(8)]
    assert {(row["root"], row["parent"], row["via"], row["label"]) for row in made} == {
        ("r0", "r0", "eda", "declined_payment")
    }


def test_a_row_gives_the_same_variants_alone_or_in_any_company(shared: Path) -> None:
    with open(shared / "data/banking77/train.csv", newline="", encoding="utf-8") as handle:
        texts = [row["text"] for row in csv.DictReader(handle)][::100]
    given = rows(*texts)
    function = Eda(variants=4).load(Inputs(), {})
    whole = {row["id"]: row for row in function(given)}
    alone = {child["id"]: child for row in given[::-1] for child in function([row])}
    assert alone == whole
    reasons = Counter((row["reason"] or "kept").partition(":")[0] for row in whole.values() if row["parent"])
    assert reasons["kept"] > 0.9 * reasons.total()


def test_nothing_to_change_is_a_reason() -> None:
    made = children(Eda(variants=2), rows("12.50", ""))
    assert [row["reason"].partition(":")[0] for row in made] == ["unchanged"] * 4


def test_a_text_without_words_keeps_its_row() -> None:
    found = only(deletions=0.1).load(Inputs(), {})(rows("👍", "...", "?!"))
    assert [row["reason"] for row in found[:3]] == [None] * 3
    assert {row["reason"].partition(":")[0] for row in found[3:]} == {"unchanged"}


def test_no_rate_at_all_is_an_error_before_anything_starts() -> None:
    [problem] = only().check()
    assert "all rates are 0" in problem.what
    assert Eda().check() == []
