"""The label gate on real questions: flips are caught, paraphrases pass, and a useless gate shows."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest

from tilth import models
from tilth.augment.label import LabelPreserved
from tilth.data.embeddings import DEFAULT_MODEL, embedder
from tilth.data.schema import added, generated, original
from tilth.data.transform import Inputs
from tilth.errors import StageError

LABELS = ("card_arrival", "lost_or_stolen_card", "exchange_rate", "top_up_failed", "age_limit", "change_pin")


@pytest.fixture(scope="module")
def rows(shared):
    """Originals of six intents: 40 each in train, 20 in test."""
    found = []
    for split, limit in (("train", 40), ("test", 20)):
        with open(shared / f"data/banking77/{split}.csv", newline="", encoding="utf-8") as file:
            by_label = {label: [] for label in LABELS}
            for number, row in enumerate(csv.DictReader(file)):
                if len(by_label.get(row["category"], range(limit))) < limit:
                    payload = {"text": row["text"], "label": row["category"]}
                    by_label[row["category"]].append(original(f"{split}-{number}", split, payload))
        found += [row for label in LABELS for row in by_label[label]]
    return found


@pytest.fixture(scope="module")
def fitted(rows):
    return LabelPreserved().fit(rows, Inputs())


def judged(gate, fitted, pairs, parent):
    children = [
        added(parent, "v", number, 1, None, text=text, label=label) for number, (text, label) in enumerate(pairs)
    ]
    return gate.load(Inputs(), fitted)([parent, *children])[1:]


def test_the_fitted_arrays_are_plain_and_say_how_good_the_gate_is(fitted):
    assert fitted["labels"].tolist() == sorted(LABELS)
    assert fitted["weights"].shape == (6, 384)
    assert all(array.dtype.kind in "fU" for array in fitted.values()), "storable without pickle"
    assert 0.9 < fitted["accuracy"] <= 1.0
    assert 0.85 < fitted["passing"] <= fitted["accuracy"] + 0.05


def test_only_originals_of_the_train_split_teach(rows, fitted):
    flipped = [added(row, "v", 0, 1, None, label="age_limit") for row in rows[:40]]
    payloads = [{"text": row["text"], "label": "age_limit"} for row in rows[:40]]
    made = [generated(f"grid-000.00000.{n}", "grid", 1, "m", payload) for n, payload in enumerate(payloads)]
    again = LabelPreserved().fit(iter([*flipped, *made, *reversed(rows)]), Inputs())
    assert all(np.array_equal(fitted[name], again[name]) for name in fitted)


def test_probabilities_are_those_of_scikit_learn(rows, fitted):
    from sklearn.linear_model import LogisticRegression

    from tilth.augment.classifiers import INVERSE_PENALTY, Linear

    model = embedder(models.resolve(DEFAULT_MODEL))
    train = [row for row in rows if row["split"] == "train"]
    texts = [row["text"] for row in rows if row["split"] == "test"]
    vectors = model.encode([row["text"] for row in train])
    plain = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(vectors, [row["label"] for row in train])
    expected = plain.predict_proba(model.encode(texts))
    assert np.abs(Linear(model, fitted).probabilities(texts) - expected).max() < 2e-3


def test_two_labels_are_as_good_as_many(rows):
    from sklearn.linear_model import LogisticRegression

    from tilth.augment.classifiers import INVERSE_PENALTY, Linear

    pair = [row for row in rows if row["label"] in LABELS[:2]]
    fitted = LabelPreserved().fit(pair, Inputs())
    model = embedder(models.resolve(DEFAULT_MODEL))
    train = [row for row in pair if row["split"] == "train"]
    vectors, labels = model.encode([row["text"] for row in train]), [row["label"] for row in train]
    expected = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(vectors, labels).predict_proba(vectors)
    found = Linear(model, fitted).probabilities([row["text"] for row in train])
    assert np.abs(found - expected).max() < 2e-3


def test_paraphrases_pass_and_label_flips_are_named(rows, fitted):
    pairs = [
        ("My card still has not come in the post, when will it get here?", "card_arrival"),
        ("I think somebody stole my card on the train", "lost_or_stolen_card"),
        ("Which rate do you use when I exchange euros?", "exchange_rate"),
        ("How can I choose a different PIN?", "change_pin"),
        ("How can I choose a different PIN?", "card_arrival"),
        ("I think somebody stole my card on the train", "age_limit"),
    ]
    children = judged(LabelPreserved(), fitted, pairs, rows[0])
    assert [row["reason"] for row in children[:4]] == [None] * 4
    meta = children[4]["meta"]
    assert meta["label_predicted"] == "change_pin"
    own = meta["label_probability"]
    assert own < 0.1
    assert re.fullmatch(
        rf"label_changed: predicts 'change_pin' [01]\.\d\d, 'card_arrival' {own:.2f} < 0\.5", children[4]["reason"]
    )
    assert children[5]["reason"].startswith("label_changed: predicts 'lost_or_stolen_card'")


def test_unseen_test_rows_pass_under_their_label_and_not_under_another(rows, fitted):
    test = [row for row in rows if row["split"] == "test"]
    right = [(row["text"], row["label"]) for row in test]
    wrong = [(text, LABELS[(LABELS.index(label) + 1) % len(LABELS)]) for text, label in right]
    kept = [row["reason"] is None for row in judged(LabelPreserved(), fitted, right, rows[0])]
    caught = [row["reason"] is not None for row in judged(LabelPreserved(), fitted, wrong, rows[0])]
    assert np.mean(kept) >= 0.9
    assert np.mean(caught) >= 0.97


def test_a_row_without_a_known_label_is_dropped_by_name(rows, fitted):
    unseen, missing = judged(LabelPreserved(), fitted, [("hello there", "greeting"), ("hello there", None)], rows[0])
    assert unseen["reason"] == "label_unseen: the classifier does not know 'greeting'"
    assert missing["reason"] == "label_missing: the row has no label"


def test_a_right_guess_that_is_not_sure_has_its_own_name(rows, fitted):
    text = "Hello, please help me"
    best = judged(LabelPreserved(), fitted, [(text, LABELS[0])], rows[0])[0]["meta"]["label_predicted"]
    row = judged(LabelPreserved(min_probability=1.0), fitted, [(text, best)], rows[0])[0]
    assert row["reason"] == f"label_uncertain: {best!r} {row['meta']['label_probability']:.2f} < 1"


def test_a_useless_gate_shows_in_its_own_figures(rows):
    rng = np.random.default_rng(0)
    shuffled = [{**row, "label": LABELS[rng.integers(6)]} for row in rows]
    fitted = LabelPreserved().fit(shuffled, Inputs())
    assert fitted["accuracy"] < 0.4
    assert fitted["passing"] < 0.4


def test_too_few_labelled_rows_end_the_stage_with_the_way_out(rows):
    one = [row for row in rows if row["label"] == LABELS[0]]
    with pytest.raises(StageError, match="1 of 1 labels have 3 originals in the train split"):
        LabelPreserved().fit(one, Inputs())
    with pytest.raises(StageError, match="0 of 0 labels"):
        LabelPreserved().fit([original("a", "train", {"text": "no label"})], Inputs())


def test_rare_labels_are_learnt_though_they_cannot_be_cross_validated(rows):
    rare = original("rare", "train", {"text": "Is it going to rain in Lisbon tomorrow?", "label": "weather"})
    fitted = LabelPreserved().fit([*rows, rare], Inputs())
    assert "weather" in fitted["labels"]
    assert np.isfinite(fitted["accuracy"])


def test_a_sample_of_originals_is_the_same_in_any_order(rows):
    gate = LabelPreserved(fit_rows=120)
    first, second = gate.fit(rows, Inputs()), gate.fit(reversed(rows), Inputs())
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, rows, fitted):
    """A sequence classifier as a stage leaves it: MiniLM's body, a head with random weights, named labels."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    source = models.resolve(DEFAULT_MODEL)
    names = dict(enumerate(LABELS))
    folder = tmp_path_factory.mktemp("stage")
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(names), id2label=names)
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "model")
    return folder


def test_the_classifier_of_a_stage_is_asked_instead(rows, classifier):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    gate = LabelPreserved(model="@sort", min_probability=0.01)
    inputs = Inputs({"@sort": str(classifier)})
    assert gate.fit(rows, inputs) == {}
    texts = [row["text"] for row in rows[:8]]
    children = [added(rows[0], "v", n, 1, None, text=text, label="age_limit") for n, text in enumerate(texts)]
    found = gate.load(inputs, {})([rows[0], *children])[1:]
    tokenizer = AutoTokenizer.from_pretrained(classifier / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(classifier / "model").eval()
    for text, row in zip(texts, found, strict=True):
        with torch.inference_mode():
            expected = plain(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        assert row["meta"]["label_probability"] == pytest.approx(expected[LABELS.index("age_limit")].item(), abs=1e-4)
        assert row["meta"]["label_predicted"] == LABELS[expected.argmax()]
        assert row["reason"] is None


def test_a_reference_to_a_stage_is_seen_by_the_recipe():
    refs = {path: (str(ref), ref.wants) for path, ref in LabelPreserved(model="@sort").refs()}
    assert refs == {"model": ("@sort", "model")}
