"""Measures of diversity beside plain references, on real instructions and on sets whose answer is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sacrebleu

from tilth.data.diversity import coverage, distinct_n, self_bleu, vendi_score, verb_map, verb_nouns
from tilth.data.quality import DiversityReport
from tilth.data.schema import generated, original
from tilth.data.transform import Inputs

SAME = ["write a poem about the sea"] * 12


@pytest.fixture(scope="module")
def instructions(shared):
    lines = (shared / "data/self-instruct/seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["instruction"] for line in lines]


def unit(rows):
    vectors = np.asarray(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_distinct_n_is_different_n_grams_over_words():
    texts = ["The cat sat. The cat ran!", "the dog"]
    assert distinct_n(texts, 1) == pytest.approx(5 / 8)  # the cat sat ran dog
    assert distinct_n(texts, 2) == pytest.approx(5 / 8)  # the-cat cat-sat sat-the cat-ran the-dog
    assert distinct_n(["a b c"], 4) == 0.0
    assert distinct_n([], 1) == 0.0


def test_distinct_n_of_real_instructions_is_that_of_the_definition(instructions):
    spaced = [text.lower().rstrip(".?! ").replace(",", " ") for text in instructions]
    plain = [text for text in spaced if text.replace(" ", "").isalpha()]
    grams, total = set(), 0
    for text in plain:
        tokens = text.split()
        total += len(tokens)
        for start in range(len(tokens) - 1):
            grams.add((tokens[start], tokens[start + 1]))
    assert len(plain) > 20
    assert distinct_n(plain, 2) == pytest.approx(len(grams) / total)


def test_self_bleu_is_the_mean_of_sacrebleus_sentence_scores(instructions):
    texts = instructions[:25]
    scores = [
        sacrebleu.sentence_bleu(text, texts[:place] + texts[place + 1 :]).score for place, text in enumerate(texts)
    ]
    assert self_bleu(texts) == pytest.approx(sum(scores) / len(scores))
    assert self_bleu(SAME) == pytest.approx(100)
    assert self_bleu(instructions, sample=40, seed=3) == self_bleu(instructions, sample=40, seed=3)
    assert self_bleu(["alone"]) == 0.0


def test_the_vendi_score_counts_what_is_different():
    assert vendi_score(unit(np.eye(7))) == pytest.approx(7)
    assert vendi_score(unit([[1, 0, 0]] * 9)) == pytest.approx(1)
    assert vendi_score(unit([[1, 0], [1, 0], [0, 1], [0, 1]])) == pytest.approx(2)
    assert vendi_score(np.empty((0, 3), np.float32)) == 0.0


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (12, 12)])
def test_the_vendi_score_is_that_of_the_whole_kernel(shape):
    """exp of the entropy of the eigenvalues of K/n, from the kernel itself whichever Gram matrix is smaller."""
    vectors = unit(np.random.default_rng(0).normal(size=shape))
    kernel = np.array([[float(a.astype(float) @ b.astype(float)) for b in vectors] for a in vectors]) / shape[0]
    eigenvalues = [value for value in np.linalg.eigvals(kernel).real if value > 1e-9]
    assert vendi_score(vectors) == pytest.approx(math.exp(-sum(v * math.log(v) for v in eigenvalues)), rel=1e-5)


def test_coverage_is_the_share_of_the_reference_with_a_neighbour():
    reference, synthetic = unit(np.eye(4)), unit([[1, 0, 0, 0], [1, 1, 0, 0]])
    found = coverage(reference, synthetic, 0.7)
    half = math.sqrt(0.5)
    assert found["covered"] == pytest.approx(2 / 4)
    assert found["mean_distance"] == pytest.approx(1 - (1 + half) / 4)
    assert found["novelty_distance"] == pytest.approx(1 - (1 + half) / 2)
    assert coverage(reference, reference, 1 - 1e-6)["covered"] == 1.0
    assert coverage(reference, np.empty((0, 4), np.float32), 0.5)["covered"] == 0.0


def test_verbs_and_their_objects_are_those_of_the_sentences():
    texts = [
        "Write a short poem about winter.",
        "Writing is fun. Write two poems!",
        "Give me an example.",
        "Why is it blue?",
    ]
    found = verb_nouns(texts)
    assert found == {("write", "poem"): 2, ("give", "example"): 1}
    assert verb_map(found) == [
        {"verb": "write", "count": 2, "nouns": [["poem", 2]]},
        {"verb": "give", "count": 1, "nouns": [["example", 1]]},
    ]
    assert len(verb_map(found, verbs=1)) == 1


def test_the_report_holds_every_figure_and_is_plain_json(instructions):
    seeds = [original(f"s{i}", "train", {"prompt": text, "completion": ""}) for i, text in enumerate(instructions[:60])]
    made = [
        generated(f"m{i}", "m", 1, None, {"prompt": t, "completion": ""}) for i, t in enumerate(instructions[60:120])
    ]
    found = DiversityReport(field="prompt").measure(seeds, made, Inputs())
    assert json.loads(json.dumps(found)) == found
    copies = DiversityReport(field="prompt", verbs=False).measure(
        seeds,
        [generated(f"m{i}", "m", 1, None, {"prompt": text, "completion": ""}) for i, text in enumerate(SAME)],
        Inputs(),
    )
    assert found["synthetic"]["rows"] == 60
    assert found["synthetic"]["vendi"] > 20 > 1.01 > copies["synthetic"]["vendi"]
    assert found["synthetic"]["self_bleu"] < 40 < copies["synthetic"]["self_bleu"]
    assert found["synthetic"]["distinct_2"] > 0.5 > copies["synthetic"]["distinct_2"]
    assert 0 <= found["coverage"]["covered"] < 0.5
    assert found["verb_nouns"]["parsed"] > 30
    assert "verb_nouns" not in copies
    assert DiversityReport().measure(seeds, [], Inputs()) == {}
