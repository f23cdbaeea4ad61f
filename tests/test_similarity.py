"""Sentence embeddings against plain transformers, and the gate that stands on them."""

from __future__ import annotations

import csv
import threading

import numpy as np
import pytest

from tilth import models
from tilth.augment.similarity import Similarity
from tilth.config import ModelName
from tilth.data.embeddings import DEFAULT_MODEL, Embedder
from tilth.data.schema import added, original
from tilth.data.transform import Inputs


@pytest.fixture(scope="module")
def folder():
    return models.resolve(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def questions(shared):
    with open(shared / "data/banking77/test.csv", newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)][:40]


@pytest.fixture(scope="module")
def truth(folder, questions):
    """Texts, the longest over the model's limit, the shortest empty, and their vectors by the definition."""
    texts = [*questions, "card " * 400, "", questions[0]]
    return texts, reference(folder, texts)


def reference(folder, texts):
    """One text at a time, no padding: the definition."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=256)).last_hidden_state
        mean = states[0].mean(0).numpy()
        vectors.append(mean / np.linalg.norm(mean))
    return np.stack(vectors)


@pytest.mark.parametrize("batch_tokens", [None, 256, 8192])
def test_vectors_are_those_of_plain_transformers_whatever_the_batch(folder, truth, batch_tokens):
    texts, expected = truth
    vectors = Embedder(folder, batch_tokens=batch_tokens).encode(texts)
    assert vectors.shape == (len(texts), 384)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - expected).max() < 1e-5


def test_texts_of_the_last_call_and_new_ones_give_the_same_vectors(folder, questions, truth):
    model = Embedder(folder)
    first = model.encode(questions[:20])
    mixed = model.encode([*questions[10:30], questions[10]])
    assert np.array_equal(mixed[:10], first[10:])
    assert np.array_equal(mixed[0], mixed[-1])
    assert np.abs(mixed[10:20] - truth[1][20:30]).max() < 1e-5


def test_gates_in_several_threads_share_it(folder):
    """Another call begins while one is under way that knew a text before."""
    model, others, found = Embedder(folder), [], []
    known = model.encode(["a card"])

    def advance(_: int) -> None:
        others.append(threading.Thread(target=lambda: found.append(model.encode(["a bank"]))))
        others[0].start()
        others[0].join(1)

    both = model.encode(["a card", "a fee"], advance)
    others[0].join()
    assert np.array_equal(both[0], known[0])
    assert np.array_equal(found[0], model.encode(["a bank"]))


def test_progress_counts_every_text_that_is_run(folder, questions):
    counted = []
    Embedder(folder, batch_tokens=256).encode(questions, counted.append)
    assert len(counted) > 1
    assert sum(counted) == len(set(questions))


def test_no_texts_give_no_rows(folder):
    assert Embedder(folder).encode([]).shape == (0, 384)


def judged(texts, parent, **options):
    root = original("r", "train", {"text": parent, "label": None})
    rows = [root, *(added(root, "v", number, 1, None, text=text) for number, text in enumerate(texts))]
    return Similarity(**options).load(Inputs(), {})(rows)[1:]


def test_a_paraphrase_passes_and_both_ends_of_the_band_are_dropped():
    parent = "What can I do if my card still hasn't arrived after 2 weeks?"
    texts = [
        "My card has not arrived after two weeks, what should I do?",
        "The weather in Lisbon is lovely in spring.",
        "What can I do if my card still hasn't arrived after 2 weeks ?",
    ]
    paraphrase, other, same = judged(texts, parent)
    assert paraphrase["reason"] is None
    assert 0.7 <= paraphrase["meta"]["cosine"] <= 0.98
    assert other["reason"] == f"meaning_lost: cosine {other['meta']['cosine']:.3f} < 0.7"
    assert same["reason"] == f"nothing_gained: cosine {same['meta']['cosine']:.3f} > 0.98"


def test_the_recorded_cosine_is_the_real_one(questions, truth):
    rows = judged(questions[1:20], questions[0], min_cosine=-1.0, max_cosine=1.0)
    vectors = truth[1][:20]
    assert [row["meta"]["cosine"] for row in rows] == pytest.approx(vectors[1:] @ vectors[0], abs=1e-4)
    assert all(row["reason"] is None for row in rows)


def test_nothing_to_judge_is_no_error():
    rows = [original("r", "train", {"text": "x"})]
    assert Similarity().load(Inputs(), {})(rows) == rows


def test_an_empty_band_is_found_before_anything_runs():
    assert [problem.where for problem in Similarity(min_cosine=0.9, max_cosine=0.8).check()] == ["min_cosine"]
    assert Similarity().check() == []


def test_the_default_model_is_known_by_its_content():
    assert isinstance(Similarity().model, ModelName)
