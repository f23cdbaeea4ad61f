"""Methods of making rows: what each keeps, what it drops and by which name, and where every row is from."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from scripted import REVIEW, problems, reasons, run, script, texts
from tilth.errors import StageError
from tilth.generate.base import Completion

EVERY = {
    "evol_instruct": {},
    "instruction_back_translation": {"min_score": 3},
    "magpie": {"row_type": "chat", "turns": 2, "systems": ("You know rivers.", "You know birds.")},
    "grid": {"axes": {"topic": ("rain", "soil"), "level": ("easy", "hard")}, "demonstrations": 2},
    "rules": {"task": "Write a review.", **REVIEW, "verify": True, "constraints": ("No.",)},
}


@pytest.mark.parametrize("kind", EVERY)
def test_every_row_has_its_origin_and_every_drop_its_name_and_the_books_balance(kind, tmp_path):
    generator = {"kind": "echo", "truncated": 0.1, "failing": 0.05, "retries": 0}
    rows = texts(*(f"Name {n} rivers of Europe and the seas that they reach, in a list." for n in range(30)))
    fields = {} if kind == "instruction_back_translation" else {"target": 20}
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(run(tmp_path / name, "text", rows, {"kind": kind, **EVERY[kind]}, generator=generator, **fields))
    artifact, done = made[0]
    counts = done.counts
    assert counts["inputs"] == counts["accepted"] + counts["filtered"] + counts["quarantined"] > counts["accepted"] > 5
    rows = [*done.rows(), *done.rejected_rows()]
    assert len({row["id"] for row in rows}) == len(rows) == counts["inputs"]
    assert all(row["via"] == kind and row["seed"] and row["split"] == "train" for row in rows)
    assert all(row["reason"] is None or re.fullmatch(r"[a-z_/]+(: .+)?", row["reason"], re.S) for row in rows)
    usage = Counter()
    for row in rows:
        usage.update(row["meta"].get("usage", {}))
    assert dict(usage) == {name: artifact.metrics[name] for name in ("prompt_tokens", "completion_tokens")}
    assert list(done.rows()) == list(made[1][1].rows()), "twice the same"


# Self-Instruct


@script
def telling_apart(text, prompt):
    if "Continue the list" in text:
        names = ("plain", "shouted", "vague", "broken_off")
        return "".join(f"{n}. Say of {name} number {prompt.seed} what it is.\n" for n, name in enumerate(names, 9))
    if "fixed labels" in text:
        if "broken_off" in text:
            return Completion("class", finish="length", tokens=1)
        return "Classification." if "shouted" in text else "I would say both." if "vague" in text else "generation"
    assert "plain" in text or "shouted" in text, "no example of what was not told apart"
    return json.dumps({"input": "", "output": "a label" if "Choose one of its possible labels" in text else "free"})


def test_what_is_not_told_apart_as_classification_or_generation_is_neither(tmp_path):
    seeds = texts(*(f"Name river {n} of Europe." for n in range(8)))
    _, done = run(tmp_path, "text", seeds, {"kind": "self_instruct"}, generator="telling_apart", target=4)
    made = {(row["prompt"].split()[2], row["completion"], row["meta"]["classification"]) for row in done.rows()}
    assert made == {("plain", "free", False), ("shouted", "a label", True)}
    why = {row["prompt"].split()[2]: row["reason"] for row in done.rejected_rows()}
    assert why["vague"] == "quarantined/malformed: 'I would say both.'"
    assert why["broken_off"] == "truncated: cut off after 1 tokens"


# Evol-Instruct


@script
def evolving(text, prompt):
    if match := re.search(r"#Given Prompt#:\n(.*)\n#", text, re.S):
        old = match.group(1)
        return {
            "parrot": old,
            "leak": "Here is the rewritten prompt: name four rivers",
            "cut": Completion("Name four rivers that", "length", 4),
        }.get(old.split()[0], f"{old} and say why")
    if "equal to each other" in text:
        return "Equal" if "alike" in text else "Not Equal"
    return {
        "sorry": "Sorry, I can't do that.",
        "hollow": "It is what it is ...",
        "regret": f"Sorry, {'well ' * 80}",
    }.get(text.split()[0], f"An answer to: {text}")


def test_evolution_is_eliminated_by_name_and_tried_again_and_what_evolves_goes_on_from_there(tmp_path):
    kinds = {
        "parrot": "no_gain",
        "alike": "no_gain",
        "leak": "copied",
        "cut": "truncated",
        "sorry": "refusal",
        "hollow": "empty",
    }
    seeds = [{"prompt": f"{name} rivers", "completion": "x"} for name in (*kinds, "good", "regret")]
    method = {"kind": "evol_instruct", "generations": 3}
    artifact, done = run(tmp_path, "completion", seeds, method, generator="evolving", budget={"max_rows": 200})
    assert artifact.detail["ended"].startswith("barren"), "those that never evolve are asked for until nothing comes"
    rows = {row["id"]: row for row in done.rows()}
    whole = [*rows.values(), *done.rejected_rows()]
    names = {row["root"]: (row["prompt"] or row["meta"]["said"]).split()[0] for row in whole}
    assert {names[parent]: kind for parent, kind in reasons(done).items()} == {
        {"leak": "Here", "cut": "Name"}.get(name, name): {why} for name, why in kinds.items()
    }
    assert Counter(row["root"] for row in done.rejected_rows()).most_common()[-1][1] > 3, "each was tried again"
    for name in ("good", "regret"):
        chain = sorted((row["meta"]["generation"], row) for row in rows.values() if names[row["root"]] == name)
        assert [generation for generation, _ in chain] == [1, 2, 3]
        assert chain[2][1]["prompt"] == f"{name} rivers and say why and say why and say why"
        assert [row["parent"] for _, row in chain] == [chain[0][1]["root"], chain[0][1]["id"], chain[1][1]["id"]]


def test_operations_are_drawn_by_the_ask_and_carried(tmp_path):
    seeds = texts(*(f"Name {n} rivers" for n in range(60)))
    method = {"kind": "evol_instruct", "operations": ["constraints", "breadth"], "generations": 1}
    _, done = run(tmp_path, "text", seeds, method, generator="evolving", target=60)
    found = Counter(row["meta"]["operation"] for row in done.rows())
    assert set(found) == {"constraints", "breadth"}
    assert min(found.values()) > 15


# instruction back-translation


@script
def curating(text, prompt):
    if prompt.shape is not None:
        return "2" if "dull" in text else "5"
    return '"How do I cook rice?"' if "copy" not in text else "copy me word for word"


def test_documents_become_answers_and_poor_pairs_are_dropped_by_their_score(tmp_path):
    documents = texts("Rinse the rice, then boil it.", "A dull text.", "Please copy me word for word, dear.", "w " * 50)
    _, done = run(
        tmp_path, "text", documents, {"kind": "instruction_back_translation", "max_words": 40}, generator="curating"
    )
    (row,) = done.rows()
    assert (row["prompt"], row["completion"]) == ("How do I cook rice?", "Rinse the rice, then boil it.")
    assert row["meta"]["score"] == 5
    assert row["parent"] == row["root"] == row["id"].partition("/")[0]
    found = sorted(row["reason"] for row in done.rejected_rows())
    assert found == [
        "copied: the instruction repeats the text",
        "length: the text has 50 words, more than 40",
        "score: 2 of 5, below 4",
    ]


def test_another_model_may_judge_and_its_tokens_count(tmp_path):
    judge = {"kind": "scripted:Scripted", "script": "curating"}
    method = {"kind": "instruction_back_translation", "instructions": 2, "judge": judge}
    artifact, done = run(tmp_path, "text", texts("Boil the rice.", "A dull text."), method, generator="echo_like")
    assert len(done) == 2
    assert all(row["reason"] == "score: 2 of 5, below 4" for row in done.rejected_rows())
    assert artifact.metrics["prompt_tokens"] == 2 * 2 * (5 + 5)


@script
def echo_like(text, prompt):
    return f"What is {prompt.seed}?"


# Magpie


@script
def speaking(text, prompt):
    if isinstance(prompt.messages, str):
        assert text.endswith("<|im_start|>user\n")
        assert "<|im_end|>" in prompt.stop
        turns = text.count("<|im_start|>user\n")
        about = re.search(r"<\|im_start\|>system\nYou know (\w+)", text)
        return f"\nQuestion {turns} about {about.group(1) if about else 'all'} {prompt.seed}\n"
    assert not any(turn["role"] == "system" for turn in prompt.messages)
    return f"Answer to {text}"


def test_a_model_speaks_as_the_user_and_then_answers_itself(tmp_path):
    _, done = run(tmp_path, "text", texts("unused"), {"kind": "magpie"}, generator="speaking", target=5)
    for row in done.rows():
        assert row["prompt"].startswith("Question 1 about all")
        assert row["completion"] == f"Answer to {row['prompt']}"
        assert row["parent"] is None


def test_conversations_go_on_and_system_messages_lead_to_topics_evenly(tmp_path):
    systems = ["You know rivers.", "You know birds."]
    method = {"kind": "magpie", "row_type": "chat", "turns": 3, "systems": systems}
    _, done = run(tmp_path, "text", texts("unused"), method, generator="speaking", target=6)
    found = Counter(row["meta"]["system"] for row in done.rows())
    assert found == dict.fromkeys(systems, 3)
    for row in done.rows():
        turns = row["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3
        about = row["meta"]["system"].split()[-1].strip(".")
        assert [turn["content"][: 17 + len(about)] for turn in turns[::2]] == [
            f"Question {n} about {about}" for n in (1, 2, 3)
        ]


def test_a_conversation_that_breaks_off_is_dropped_whole(tmp_path):
    method = {"kind": "magpie", "row_type": "chat", "turns": 2, "min_words": 1}
    with pytest.raises(StageError, match=r"copied"):
        run(tmp_path, "text", texts("unused"), method, generator="stuck", target=3)


@script
def stuck(text, prompt):
    return "hello"


def test_faults_of_magpie_are_found_before_it_runs(tmp_path):
    method = {"kind": "magpie", "turns": 2, "pre_query": "{{ history }}{% for"}
    assert set(problems(tmp_path, "text", texts("x"), method, target=3)) == {"turns", "pre_query"}
    found = problems(tmp_path, "text", texts("x"), {"kind": "magpie", "pre_query": "{{ history }}"}, target=3)
    assert "history" in found["pre_query"].what


# grounded questions and answers

PASSAGE = "The earthworm breathes\nthrough  its skin. It has five pairs of hearts. At night it pulls leaves down."


@script
def grounding(text, prompt):
    if "elephant" in text:
        return "no JSON at all"
    pairs = [
        ("How does an earthworm breathe?", "breathes through its skin", "Through its skin."),
        ("How many hearts has an earthworm?", "It has five  pairs of hearts.", "five pairs of hearts"),
        ("How old does it get?", "It lives for eight years.", "Eight years."),
        ("how many hearts has an earthworm?", "It has five pairs of hearts.", "Five pairs."),
        ("What does it pull down?", "leaves", "leaves"),
        ("And then?", "At night it pulls leaves down.", " "),
    ]
    return json.dumps({"pairs": [dict(zip(("question", "evidence", "answer"), pair, strict=True)) for pair in pairs]})


def test_an_answer_needs_evidence_that_stands_in_the_passage(tmp_path):
    method = {"kind": "grounded_qa", "pairs": 6}
    artifact, done = run(tmp_path, "text", texts(PASSAGE), method, generator="grounding")
    rows = list(done.rows())
    assert [row["completion"] for row in rows] == ["Through its skin.", "five pairs of hearts"]
    for row in rows:
        evidence = row["meta"]["evidence"]
        assert PASSAGE[evidence["start"] : evidence["end"]] == evidence["text"]
    assert rows[0]["meta"]["evidence"]["text"] == "breathes\nthrough  its skin"
    found = Counter(row["reason"].partition(":")[0] for row in done.rejected_rows())
    assert found == {"unsupported": 2, "copied": 1, "empty": 1}
    assert artifact.metrics["prompt_tokens"] == 5, "one question to the model for the six"


def test_the_prompt_may_hold_the_passage_and_the_answer_may_have_to_be_quoted(tmp_path):
    method = {"kind": "grounded_qa", "pairs": 6, "with_context": True, "answer_in_evidence": True}
    _, done = run(tmp_path, "text", texts(PASSAGE), method, generator="grounding")
    (row,) = done.rows()
    assert row["prompt"] == f"{PASSAGE}\n\nHow many hearts has an earthworm?"


def test_an_answer_of_another_shape_goes_to_quarantine_with_its_text(tmp_path):
    rows = texts(PASSAGE, "The elephant sleeps standing.", PASSAGE + " Indeed.")
    _, done = run(tmp_path, "text", rows, {"kind": "grounded_qa", "pairs": 6}, generator="grounding")
    (row,) = [row for row in done.rejected_rows() if row["reason"].startswith("quarantined")]
    assert row["reason"] == "quarantined/malformed: 'no JSON at all'"
    assert row["meta"]["usage"]["prompt_tokens"] == 3 * 5, "it was asked for three times"


# with a model


@pytest.mark.slow
def test_a_small_model_evolves_and_answers_from_passages(shared, tmp_path):
    """SmolLM2 is too small for good rows; whatever it makes is whole, traceable and, from a passage, supported."""
    model = {"kind": "hf", "model": "HuggingFaceTB/SmolLM2-135M-Instruct", "sampling": {"max_tokens": 160}}
    lines = (shared / "data/self-instruct/seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()[:16]
    seeds = texts(*(json.loads(line)["instruction"] for line in lines))
    (tmp_path / "evol").mkdir()
    _, done = run(
        tmp_path / "evol",
        "text",
        seeds,
        {"kind": "evol_instruct"},
        generator=model,
        budget={"max_rows": 32},
        round_rows=16,
    )
    rows = list(done.rows())
    assert rows
    for row in rows:
        assert row["prompt"] not in {seed["text"] for seed in seeds}
        assert row["completion"]
        assert row["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    articles = json.loads((shared / "data/xquad/xquad.en.json").read_text(encoding="utf-8"))["data"]
    passages = [paragraph["context"] for article in articles for paragraph in article["paragraphs"]][:12]
    (tmp_path / "qa").mkdir()
    method = {"kind": "grounded_qa", "pairs": 1}
    _, done = run(tmp_path / "qa", "text", texts(*passages), method, generator=model, max_quarantined=1.0)
    for row in done.rows():
        evidence = row["meta"]["evidence"]
        assert any(evidence["text"] == passage[evidence["start"] : evidence["end"]] for passage in passages)
    assert done.counts["inputs"] == 12
