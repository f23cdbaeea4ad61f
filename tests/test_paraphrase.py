"""Paraphrases: what is asked, what is taken off an answer, what is dropped and why, and real ones by a small model."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tilth
from tilth.augment.paraphrase import STYLES, Paraphrase, stripped
from tilth.data.dataset import Dataset
from tilth.data.schema import original
from tilth.data.transform import Inputs
from tilth.errors import RecipeError
from tilth.generate.base import Answer, Completion, Generate, Generator, Prompt
from tilth.generate.echo import Echo

TEXT = "My card still has not arrived."


class Scripted(Generator):
    """Gives these texts in turn, those that end in … as cut off; "!" fails altogether."""

    says: tuple[str, ...] = ()

    def load(self, inputs: Inputs) -> Generate:
        lines = iter(self.says)

        def ask(prompts: Sequence[Prompt]) -> list[Answer]:
            found = []
            for prompt in prompts:
                texts = [next(lines) for _ in range(prompt.n)]
                items = tuple(Completion(text, "length" if text.endswith("…") else "stop", 5) for text in texts)
                found.append(Answer((), 7, 0, "http: gave up") if "!" in texts else Answer(items, 7, 5 * len(items)))
            return found

        return ask


def made(step: Paraphrase, *texts: str) -> list[dict[str, Any]]:
    rows = [original(f"r{n}", "train", {"text": text, "label": "card"}) for n, text in enumerate(texts)]
    return step.load(Inputs(), {})(rows)[len(rows) :]


def by(*says: str, **fields: Any) -> Paraphrase:
    return Paraphrase(generator=Scripted(says=says), **{"variants": len(says), "styles": ("plain",), **fields})


def test_an_answer_becomes_a_row_with_its_style_its_likeness_and_its_tokens():
    row = made(by("The card that I ordered is not here yet."), TEXT)[0]
    assert row["text"] == "The card that I ordered is not here yet."
    assert row["reason"] is None
    assert (row["label"], row["parent"], row["via"]) == ("card", "r0", "paraphrase")
    assert row["meta"]["style"] == "plain"
    assert 0 < row["meta"]["edit_similarity"] < 0.7
    assert row["meta"]["usage"] == {"prompt_tokens": 7, "completion_tokens": 5}


def test_what_says_nothing_new_is_cut_off_or_goes_on_is_dropped_by_name():
    says = (
        "my card still has not ARRIVED",
        "Where is it?",
        "where is it",
        "My order is…",
        "Where?\n\nI made it short.",
    )
    reasons = [row["reason"] for row in made(by(*says), TEXT)]
    assert reasons[0].startswith("unchanged: edit similarity 1.00")
    assert reasons[1] is None
    assert reasons[2] == "duplicate: the same words as variant 1"
    assert reasons[3] == "truncated: cut off after 5 tokens"
    assert reasons[4] == "more: 2 paragraphs where the original has 1"


def test_a_question_that_failed_gives_every_variant_its_reason():
    rows = made(by("!", "never seen", variants=2), TEXT)
    assert [row["reason"] for row in rows] == ["quarantined/http: gave up"] * 2


def test_the_styles_of_a_row_are_its_own_and_none_comes_twice_before_all_came():
    step = Paraphrase(generator=Echo(), styles=("plain", "formal", "casual", "like a pirate"), variants=6, seed=3)
    texts = [f"{TEXT} {number}" for number in range(20)]
    rows = made(step, *texts)
    styles = [[row["meta"]["style"] for row in rows if row["parent"] == f"r{n}"] for n in range(20)]
    assert all(sorted(set(found)) == sorted(step.styles) and len(found) == 6 for found in styles)
    assert len({tuple(found) for found in styles}) > 5, "rows differ"
    again = made(step, *texts)
    assert again == rows
    assert made(step, texts[0]) == rows[:6], "a row's variants do not depend on its neighbours"


def test_the_style_is_asked_for_and_the_text_given():
    asked: list[Prompt] = []

    class Watching(Echo):
        def load(self, inputs: Inputs) -> Generate:
            answer = super().load(inputs)
            return lambda prompts: (asked.extend(prompts), answer(prompts))[1]

    made(Paraphrase(generator=Watching(), styles=("formal", "like a pirate"), variants=2), TEXT)
    said = sorted(str(prompt.messages) for prompt in asked)
    assert all(TEXT in text for text in said)
    assert STYLES["formal"] in said[0]
    assert "like a pirate" in said[1]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('Sure! Here is a more formal version of the text:\n\n"Where is my card?"', "Where is my card?"),
        ("Here's the paraphrase: I don't know.", "I don't know."),
        ("**Paraphrased text:** hello there", "hello there"),
        ("Certainly, here is the sentence in other words:\nhello", "hello"),
        ("“Where is my card?”", "Where is my card?"),
        ("'I don't know'", "I don't know"),
        ('"Yes" or "no"', '"Yes" or "no"'),
        ("Text me back: soon", "Text me back: soon"),
        ("Here is my card: 123", "Here is my card: 123"),
        ("I have a question: where is it?", "I have a question: where is it?"),
        ("  \n", ""),
    ],
)
def test_only_what_surely_is_no_part_of_the_text_is_taken_off(answer, text):
    assert stripped(answer, TEXT) == text


def test_what_the_original_has_itself_stays():
    assert stripped('"I am lost," he said, "and cold"', "He was cold") == '"I am lost," he said, "and cold"'
    assert stripped('"Where is it?"', '"Where is my card?"') == '"Where is it?"'
    assert stripped("Text: where is it", "Text: where is my card") == "Text: where is it"


def test_no_sentence_of_real_customers_loses_a_word_to_the_stripping(shared):
    with open(shared / "data/banking77/train.csv", newline="", encoding="utf-8") as file:
        texts = [row["text"].strip() for row in csv.DictReader(file)]
    changed = [text for text in texts if stripped(text, "") != text and not re.fullmatch(r'(["\']).*\1', text, re.S)]
    assert len(texts) > 9000
    assert changed == []


def test_a_misspelt_style_and_copies_by_design_are_found_before_anything_runs():
    step = {"kind": "paraphrase", "generator": {"kind": "echo", "sampling": {"temperature": 0}}, "variants": 3}
    step["styles"] = ["formel", "casual"]
    stages = {
        "data": {"kind": "data", "row": "text", "source": {"kind": "inline", "rows": [{"text": "a"}]}},
        "augment": {"kind": "augment", "data": "@data", "steps": [step]},
    }
    with pytest.raises(RecipeError) as caught:
        tilth.load({"name": "wrong", "stages": stages})
    message = str(caught.value)
    assert "no style is called 'formel'" in message
    assert "the same text twice at temperature 0" in message


def banking(shared: Any, rows: int) -> dict[str, Any]:
    source = {"kind": "csv", "path": str(shared / "data/banking77/train.csv"), "columns": {"label": "category"}}
    return {"kind": "data", "row": "labelled", "source": source, "sample": {"rows": rows}}


def augmented(out: Any, shared: Any, rows: int, *steps: dict[str, Any]) -> Dataset:
    here = {"workers": 0}
    stages = {
        "data": {**banking(shared, rows), "resources": here},
        "augment": {"kind": "augment", "data": "@data", "steps": list(steps), "resources": here, "max_quarantined": 1},
    }
    return Dataset.open(tilth.run({"name": "paraphrased", "stages": stages}, out)["augment"])


def test_every_variant_of_real_rows_is_accounted_for(shared, tmp_path):
    generator = {"kind": "echo", "truncated": 0.2, "failing": 0.1}
    done = augmented(tmp_path, shared, 40, {"kind": "paraphrase", "generator": generator, "variants": 3})
    counts = done.counts
    assert counts["inputs"] == 40
    assert counts["made"] == 120
    assert counts["inputs"] + counts["made"] == counts["accepted"] + counts["filtered"] + counts["quarantined"]
    assert {"truncated", "quarantined/echo"} <= set(counts["reasons"])


@pytest.mark.slow
def test_a_small_model_paraphrases_customers_questions(shared, tmp_path):
    generator = {"kind": "hf", "model": "HuggingFaceTB/SmolLM2-135M-Instruct", "sampling": {"max_tokens": 48}}
    steps = [
        {"kind": "paraphrase", "generator": generator, "variants": 2, "styles": ["plain", "formal"]},
        {"kind": "similarity", "min_cosine": 0.5},
    ]
    done = augmented(tmp_path, shared, 8, *steps)
    rows = {row["id"]: row for row in done.rows()}
    children = [row for row in rows.values() if row["parent"]]
    assert done.counts["made"] == 16
    assert len(children) >= 4
    for child in children:
        assert child["label"] == rows[child["parent"]]["label"]
        assert child["text"] != rows[child["parent"]]["text"]
        assert 0.5 <= child["meta"]["cosine"] <= 0.98
        assert child["meta"]["style"] in ("plain", "formal")
        assert child["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_recipe_of_the_examples_runs_dry(root, tmp_path):
    before = Path.cwd()
    os.chdir(root)
    try:
        dry = (
            "stages.augment.steps.0.generator={kind: echo}",
            "stages.augment.resources.workers=0",
            "stages.data.sample.per_label=3",
        )
        found = tilth.run("examples/recipes/paraphrase.yaml", tmp_path, *dry)
    finally:
        os.chdir(before)
    counts = found["augment"].counts
    assert counts["inputs"] == 30
    assert counts["made"] == 60
    assert counts["filtered"] + counts["quarantined"] + counts["via"].get("paraphrase", 0) == 60
