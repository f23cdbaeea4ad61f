"""Counterfactuals: what is exchanged and what is not, that nothing chains, and labels that a model flips."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

import tilth
from tilth.augment.counterfactual import Counterfactual
from tilth.augment.word_lists import names, pairs, rules
from tilth.data.dataset import Dataset
from tilth.data.schema import original
from tilth.data.transform import Inputs
from tilth.errors import RecipeError, StageError
from tilth.generate.base import Answer, Completion, Generate, Generator, Prompt


def variants(text: str, label: str | None = "card", **fields: Any) -> list[dict[str, Any]]:
    step = Counterfactual(**fields)
    return step.load(Inputs(), step.fit([], Inputs()))([original("r", "train", {"text": text, "label": label})])[1:]


def swapped(text: str, *attributes: str, **fields: Any) -> str:
    return str(variants(text, attributes=attributes, **fields)[0]["text"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He lost his card.", "She lost her card."),
        ("She gave her the book; it is hers.", "He gave him the book; it is his."),
        ("The book is his. His own car!", "The book is hers. Her own car!"),
        ("They saw her yesterday with her mother.", "They saw him yesterday with his father."),
        ("HE'S HERE, and she'd gone", "SHE'S HERE, and he'd gone"),
        ("his or her card", "her or his card"),
        ("Mr. Smith's wife, Mrs Jones and ma'am", "Ms. Smith's husband, Mr Jones and sir"),
        ("the boys' school and a father-in-law", "the girls' school and a mother-in-law"),
        ("Father and mother, king and queen", "Mother and father, queen and king"),
    ],
)
def test_gender_is_exchanged_in_both_directions_with_grammar_and_capitals(text, expected):
    assert swapped(text, "gender") == expected


def test_a_swap_of_a_swap_is_the_original():
    text = "He told his mother that the actress and her husband saw him himself near the king."
    assert swapped(swapped(text, "gender"), "gender") == text


def test_proper_names_numbers_addresses_and_protected_words_stay():
    text = "Queen Elizabeth wrote to mother@home.org and @king about King Street and women's shoes in 1987."
    assert variants(text, protect=("women's shoes",))[0]["reason"] == "unchanged: has no word of gender"
    assert swapped("Is San Jose the home of Jose?", "names") == "Is San Jose the home of Maria?"


def test_words_of_the_label_stay_because_the_label_does():
    row = variants("The women bought shoes for a girl", "women_shoes")[0]
    assert (row["text"], row["label"]) == ("The women bought shoes for a boy", "women_shoes")


def test_names_agree_with_pronouns_and_are_the_same_throughout():
    text = swapped("John lost his card. John's mother and Robert know.", "gender", "names")
    found = re.fullmatch(r"(\w+) lost her card\. (\w+)'s father and (\w+) know\.", text)
    assert found is not None, text
    assert found[1] == found[2] != found[3]


def test_origins_differ_between_variants_and_genders_stay():
    found = variants("Emily wrote to Jamal.", attributes=("origin",), variants=5)
    women = {name: group for group, listed in names().items() for name in listed}
    groups = [[women[name] for name in re.findall(r"[A-Z]\w+", row["text"])] for row in found]
    assert [[group.gender for group in pair] for pair in groups] == [["women", "men"]] * 5
    targets = [{group.origin for group in pair} for pair in groups]
    assert all(len(target) == 1 for target in targets)
    assert len(set.union(*targets)) == 5
    assert not set.union(*targets) & {"english", "african_american"}


def test_spellings_change_sides():
    assert swapped("My favourite colour is gray, organize a cheque", "spelling") == (
        "My favorite color is grey, organise a check"
    )


def test_features_of_a_dialect_are_put_in_and_said():
    for rule in rules("aae"):
        row = variants(rule.before, attributes=("aae",))[0]
        assert row["text"] == rule.after, rule.feature
        assert row["meta"]["edits"]
    assert variants("Nothing here fits.", attributes=("aae",))[0]["reason"].startswith("unchanged")
    assert swapped("Isn't it nice?", "spelling", "aae") == "Isn't it nice?"


def test_pairs_of_ones_own_may_be_phrases_and_go_before_the_lists():
    own = (("black people", "white people"), ("nurse", "doctor"), ("mother", "parent"))
    text = "Black people and white people met a nurse's doctor and a mother"
    assert swapped(text, "gender", pairs=own) == "White people and black people met a doctor's nurse and a parent"
    assert swapped("iPhone or Galaxy", pairs=(("iPhone", "Galaxy"),)) == "Galaxy or iPhone"


def test_what_was_exchanged_is_recorded():
    assert variants("He is here")[0]["meta"]["edits"] == [{"old": "He", "new": "She"}]


def test_the_lists_contradict_themselves_nowhere():
    listed = [name for found in names().values() for name in found]
    assert len(listed) == len(set(listed))
    assert len({len(found) for found in names().values()}) == 1
    for name in ("gender", "spelling"):
        found = pairs(name)
        assert all(old != new and old == old.lower() for old, new in found.items())
        # what a word becomes goes back to it, or to the word that the list prefers
        assert all(found.get(found.get(new, old)) in (new, None) for old, new in found.items())


def test_possessive_her_is_told_from_the_object_in_real_text(shared):
    """Real "his" and "him" say which "her" would be which: put "her" in their place and look what comes back."""
    texts = []
    for name in ("imdb_Movie_Expressed_Sentiment", "samsum_Summarize_this_dialogue_"):
        with open(shared / f"data/flan-t0/{name}.jsonl", encoding="utf-8") as file:
            texts += [json.loads(line)["prompt"] for line in file]
    right = total = 0
    for sentence in (part for text in texts for part in re.split(r"(?<=[.!?\n])\s+", text)):
        was = re.findall(r"\b(?:his|him|he)\b", sentence)
        if was and not re.search(r"\b(?:her|hers|she|His|Him|He)\b", sentence):
            female = re.sub(r"\bhe\b", "she", re.sub(r"\b(?:his|him)\b", "her", sentence))
            now = re.findall(r"\b(?:his|him|he)\b", swapped(female, "gender"))
            total += len(was)
            right += sum(a == b for a, b in zip(was, now, strict=True))
    assert total > 300
    assert right / total > 0.95


def test_real_rows_without_such_words_are_dropped_by_name_and_the_others_keep_their_label(shared, tmp_path):
    with gzip.open(shared / "data/hh-rlhf/helpful-base-test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [
            {"text": json.loads(line)["chosen"], "label": "dialogue"} for line, _ in zip(file, range(150), strict=False)
        ]
    here = {"workers": 0}
    steps = [{"kind": "counterfactual", "attributes": ["gender", "names"]}]
    stages = {
        "data": {
            "kind": "data", "row": "labelled", "source": {"kind": "inline", "rows": rows}, "resources": here,
        },
        "augment": {"kind": "augment", "data": "@data", "steps": steps, "resources": here},
    }  # fmt: skip
    done = Dataset.open(tilth.run({"name": "swapped", "stages": stages}, tmp_path)["augment"])
    found = {row["id"]: row for row in done.rows()}
    children = [row for row in found.values() if row["parent"]]
    dropped = list(done.rejected_rows())
    assert len(children) > 20
    assert len(children) + len(dropped) == 150
    assert {row["reason"] for row in dropped} == {"unchanged: has no word of gender, names"}
    for child in children:
        text = found[child["parent"]]["text"]
        assert child["text"].count("\n") == text.count("\n"), "only words change"
        assert all(edit["old"] in text and edit["new"] in child["text"] for edit in child["meta"]["edits"])


def problems(**fields: Any) -> str:
    stages = {
        "data": {"kind": "data", "row": "text", "source": {"kind": "inline", "rows": [{"text": "a"}]}},
        "augment": {"kind": "augment", "data": "@data", "steps": [{"kind": "counterfactual", **fields}]},
    }
    with pytest.raises(RecipeError) as caught:
        tilth.load({"name": "wrong", "stages": stages})
    return str(caught.value)


def test_faults_are_found_before_anything_runs():
    assert "'nurse' stands in the pairs twice" in problems(pairs=[["nurse", "doctor"], ["Nurse", "carer"]])
    assert "can be swapped in 1 way, not 2" in problems(variants=2)
    assert "can be swapped in 6 ways, not 9" in problems(variants=9, attributes=["origin"])
    assert "nothing is to be swapped" in problems(attributes=[])
    assert "rewrite asks a model" in problems(mode="rewrite")
    assert "swap asks no model" in problems(generator={"kind": "echo"})


REVIEWS = {
    "a dull film with a weak end": "negative",
    "a warm film with a fine cast": "positive",
    "too long and far too loud": "negative",
}
FLIPPED = {
    "a dull film with a weak end": 'Sure! Here is the text: "a gripping film with a strong end"',
    "a warm film with a fine cast": "Avoid it.",
    "too long and far too loud": "too long and far too loud",
}


class Flipper(Generator):
    """Gives for each review what a model might."""

    def load(self, inputs: Inputs) -> Generate:
        def ask(prompts: Sequence[Prompt]) -> list[Answer]:
            found = []
            for prompt in prompts:
                said = prompt.messages[-1]["content"]
                text = next(text for text in FLIPPED if text in said)
                assert f"is: {REVIEWS[text]}." in said, "the old label is named"
                found.append(Answer((Completion(FLIPPED[text], "stop", 8),), 20, 8))
            return found

        return ask


def test_a_flipped_label_goes_with_its_text_and_empty_claims_are_dropped():
    rows = [original(text, "train", {"text": text, "label": label}) for text, label in REVIEWS.items()]
    step = Counterfactual(mode="rewrite", generator=Flipper())
    good, far, same = step.load(Inputs(), step.fit(rows, Inputs()))(rows)[3:]
    assert (good["text"], good["label"], good["reason"]) == ("a gripping film with a strong end", "positive", None)
    assert good["meta"]["flipped_from"] == "negative"
    assert good["meta"]["usage"]["completion_tokens"] == 8
    assert far["reason"] == "rewritten: edit similarity 0.00 < 0.4"
    assert same["reason"].startswith("unchanged")


def test_a_label_alone_cannot_be_flipped():
    rows = [original("r", "train", {"text": "a", "label": "only"})]
    step = Counterfactual(mode="rewrite", generator=Flipper())
    with pytest.raises(StageError, match="can be flipped only to another one"):
        step.load(Inputs(), step.fit(rows, Inputs()))
    bare = [original("r", "train", {"text": "a"})]
    step = Counterfactual(mode="rewrite", generator=Flipper(), labels=("x", "y"))
    assert step.load(Inputs(), {})(bare)[1]["reason"].startswith("label_missing")


def test_the_label_gate_judges_the_new_label(shared):
    """Intents of real customers: a text that was left as it is does not pass for another intent."""
    from tilth.augment.label import LabelPreserved

    with open(shared / "data/banking77/train.csv", newline="", encoding="utf-8") as file:
        wanted = {"card_arrival": [], "exchange_rate": []}
        for row in csv.DictReader(file):
            if row["category"] in wanted:
                wanted[row["category"]].append(row["text"])
    rows = [
        original(f"{label}{n}", "train", {"text": text, "label": label})
        for label, texts in wanted.items()
        for n, text in enumerate(texts[:40])
    ]

    class Claims(Generator):
        def load(self, inputs: Inputs) -> Generate:
            says = ("What is the rate of exchange for euros today?", "My card is still not here, so where is it?")
            return lambda prompts: [Answer((Completion(says[n % 2]),)) for n, _ in enumerate(prompts)]

    step = Counterfactual(mode="rewrite", generator=Claims(), min_kept=0)
    judged = [rows[0], rows[1]]
    gate = LabelPreserved()
    found = gate.load(Inputs(), gate.fit(rows, Inputs()))(step.load(Inputs(), step.fit(rows, Inputs()))(judged))[2:]
    assert [row["label"] for row in found] == ["exchange_rate", "exchange_rate"]
    assert found[0]["reason"] is None
    assert found[1]["reason"].startswith("label_changed: predicts 'card_arrival'")
