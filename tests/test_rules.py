"""Generation under rules: nothing that breaks one, and each drop with the rule."""

from __future__ import annotations

import json
import re

from scripted import REVIEW, problems, run, script, texts

RULES = {
    "kind": "rules",
    "task": "Write a review of a thing.",
    **REVIEW,
    "constraints": ["Name no price."],
    "rules": {
        "product": {"pattern": "[a-z ]+"},
        "review": {"min_words": 3, "max_words": 6, "must_contain": ["Good"], "must_not_contain": ["euro"]},
    },
}
REVIEWS = [
    ("rain gauge", "It is good.", None),
    ("Rain Gauge", "It is good.", "rule: product does not match [a-z ]+"),
    ("boots", "Good.", "rule: review has 1 words, not 3 to 6"),
    ("boots", "They are good and they are warm.", "rule: review has 7 words, not 3 to 6"),
    ("boots", "They are bad.", "rule: review lacks 'Good'"),
    ("boots", "Good for a Euro.", "rule: review holds 'euro'"),
    ("spade ", "Good for ten dollars.", None),
    ("rain  gauge", "Good when it rains.", None),
]


@script
def reviewing(text, prompt):
    if prompt.shape.choices:
        return "no" if "dollars" in text else "yes"
    assert "- Name no price.\n" in text
    product, review, _ = REVIEWS[int(re.search(r"number (\d)", text).group(1))]
    return json.dumps({"product": product, "review": review})


def reviewed(folder, **fields):
    """One ask shows one number, and so gets one review."""
    rows = texts(*(f"number {n}" for n in range(len(REVIEWS))))
    method = {**RULES, "demonstrations": 1, **fields.pop("method", {})}
    return run(folder, "text", rows, method, generator="reviewing", budget={"max_rows": 120}, round_rows=120, **fields)


def test_what_breaks_a_rule_is_dropped_with_the_rule(tmp_path):
    _, done = reviewed(tmp_path)
    kept = {(row["meta"]["answer"]["product"], row["prompt"], row["completion"]) for row in done.rows()}
    assert kept == {(name, f"Review the {name}.".strip(), text) for name, text, reason in REVIEWS if reason is None}
    assert {row["reason"] for row in done.rejected_rows()} == {reason for *_, reason in REVIEWS if reason}


def test_rules_in_words_can_be_verified_by_the_model(tmp_path):
    _, done = reviewed(tmp_path, method={"verify": True})
    assert "rule: Name no price." in {row["reason"] for row in done.rejected_rows()}
    assert {row["completion"] for row in done.rows()} == {"It is good.", "Good when it rains."}


def test_a_key_is_unique_over_all_rounds(tmp_path):
    gate = {"kind": "unique", "by": ["meta.answer.product"]}
    _, done = reviewed(tmp_path, steps=[gate], unit_rows=8)
    assert sorted(" ".join(row["prompt"].split()) for row in done.rows()) == [
        "Review the rain gauge.",
        "Review the spade .",
    ]
    first = next(row for row in done.rows() if "rain" in row["prompt"])
    twice = [row for row in done.rejected_rows() if row["reason"].startswith("not_unique")]
    assert f"not_unique: the same meta.answer.product as {first['id']}" in {row["reason"] for row in twice}


def test_a_schema_may_lie_in_a_file_and_its_fields_may_fill_any_columns(tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(REVIEW["answer"]))
    method = {
        "kind": "rules",
        "task": "Write.",
        "answer_file": str(tmp_path / "schema.json"),
        "row_type": "labelled",
        "columns": {"text": "{{ review }} ({{ product }})", "label": "{{ product }}"},
    }
    _, done = run(tmp_path, "text", texts("x"), method, target=5)
    for row in done.rows():
        answer = row["meta"]["answer"]
        assert (row["text"], row["label"]) == (f"{answer['review']} ({answer['product']})".strip(), answer["product"])


def test_faults_of_rules_are_found_before_they_run(tmp_path):
    def found(**changes):
        return set(problems(tmp_path, "text", texts("x"), {**RULES, **changes}, target=3))

    assert found(columns={"prompt": "x"}) == {"columns"}
    assert found(columns={"prompt": "{{ title }}", "completion": "{{ review"}) == {
        "columns.prompt",
        "columns.completion",
    }
    assert found(rules={"title": {}}) == {"rules.title"}
    assert found(rules={"review": {"pattern": "("}}) == {"rules.review.pattern"}
    assert found(answer=None) == {"answer"}
    assert found(answer={"type": "nothing"}) == {"answer"}
    assert found(answer={"type": "string"}) == {"answer"}
    assert found(answer=None, answer_file=str(tmp_path / "absent.json")) >= {"answer_file"}
