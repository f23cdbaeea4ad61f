"""Evaluation of real models: predictions against a plain loop over transformers, and the stage end to end."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from helpers import write_dataset
from tilth import models
from tilth.data.bootstrap import Interval
from tilth.data.conditioning import label_prefix
from tilth.data.dataset import Dataset
from tilth.data.loading import Card, load_pretrained, load_tokenizer
from tilth.data.schema import Row, original
from tilth.errors import ModelError, RecipeError, StageError, TilthError
from tilth.evaluate.language_model import scored_spans
from tilth.evaluate.measures.likelihood import Perplexity
from tilth.evaluate.predictor import Predictor
from tilth.evaluate.scores import Comparison, verdict
from tilth.evaluate.stage import Evaluate
from tilth.recipe import load
from tilth.runs import Artifact, Out
from tilth.storage import Store
from tiny import model_folder, tokenizer

LABELS = ("card_arrival", "exchange_rate", "lost_or_stolen_card")


def resolved(name: str) -> Path:
    try:
        return models.resolve(name)
    except ModelError as error:
        pytest.skip(f"model not to be had: {error}")


@pytest.fixture(scope="session")
def causal() -> Path:
    return resolved("HuggingFaceTB/SmolLM2-135M-Instruct")


def classifier(folder: Path, seed: int) -> Path:
    """MiniLM with a head of random weights, as a training stage would leave it."""
    torch.manual_seed(seed)
    base = resolved("sentence-transformers/all-MiniLM-L6-v2")
    load_pretrained(base, "classification", LABELS).model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    Card("classification", LABELS, max_length=32).write(folder)
    return folder


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("classifiers")
    return classifier(root / "one", 1), classifier(root / "two", 2)


@pytest.fixture(scope="session")
def questions(shared: Path) -> list[Row]:
    with open(shared / "data/banking77/test.csv", newline="", encoding="utf-8") as file:
        found = [line for line in csv.DictReader(file) if line["category"] in LABELS]
    picked = found[::3]
    return [original(f"q{i}", "test", {"text": r["text"], "label": r["category"]}) for i, r in enumerate(picked)]


def test_a_classifier_predicts_as_a_plain_loop_does(classifiers: tuple[Path, Path], questions: list[Row]):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(classifiers[0])
    model = AutoModelForSequenceClassification.from_pretrained(classifiers[0]).eval()
    for row in Predictor(classifiers[0], batch_tokens=200).predict(questions):
        with torch.no_grad():
            one = tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=32)
            probabilities = model(**one).logits[0].softmax(-1)
        assert row["meta"]["prediction"] == LABELS[int(probabilities.argmax())]
        assert row["meta"]["confidence"] == pytest.approx(float(probabilities.max()), abs=1e-4)


@pytest.fixture(scope="session")
def predictor(causal: Path) -> Predictor:
    return Predictor(causal, batch_tokens=150)


@pytest.fixture(scope="session")
def plain(causal: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(causal, dtype="float32").eval(), AutoTokenizer.from_pretrained(causal)


def loss_of(plain: tuple[Any, Any], text: str, scored_from: int) -> tuple[float, int]:
    """Summed loss and number of tokens from token `scored_from` on, by the model's own loss."""
    model, tokenizer = plain
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    labels = ids.clone()
    labels[:, :scored_from] = -100
    with torch.no_grad():
        loss = model(input_ids=ids, labels=labels).loss
    count = int((labels[:, 1:] != -100).sum())
    return float(loss) * count, count


def test_perplexity_of_texts_is_that_of_the_models_own_loss(
    predictor: Predictor, plain: tuple[Any, Any], questions: list[Row]
):
    for row in predictor.predict(questions[:12]):
        nll, tokens = loss_of(plain, row["text"], 0)
        assert row["meta"]["tokens"] == tokens
        assert row["meta"]["nll"] == pytest.approx(nll, rel=1e-5)


def test_of_a_model_trained_after_labels_the_text_is_scored_after_its_label():
    row = original("q", "test", {"text": "Where is it?", "label": "card_arrival"})
    text, spans, _ = scored_spans(row, None, label_prefix(row["label"]))
    assert text == "card arrival: Where is it?"
    assert [text[a:b] for a, b in spans] == ["Where is it?"]


def test_only_the_completion_is_scored(predictor: Predictor, plain: tuple[Any, Any]):
    row = original("c", "test", {"prompt": "The capital of France is", "completion": " Paris, on the Seine."})
    (found,) = predictor.predict([row])
    prompt = len(plain[1](row["prompt"])["input_ids"])
    nll, tokens = loss_of(plain, row["prompt"] + row["completion"], prompt)
    assert (found["meta"]["nll"], found["meta"]["tokens"]) == (pytest.approx(nll, rel=1e-5), tokens)


def test_only_what_the_assistant_says_is_scored(predictor: Predictor, plain: tuple[Any, Any]):
    turns = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Loire."}]
    (found,) = predictor.predict([original("m", "test", {"messages": turns})])
    before = plain[1].apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    whole = plain[1].apply_chat_template(turns, tokenize=False)
    nll, tokens = loss_of(plain, whole, len(plain[1](before)["input_ids"]))
    assert (found["meta"]["nll"], found["meta"]["tokens"]) == (pytest.approx(nll, rel=1e-5), tokens)


def test_a_template_that_writes_the_last_turn_otherwise_tells_no_turns_apart():
    """As one that leaves out what was thought before earlier answers: other characters would be scored in silence."""
    coding = tokenizer()
    coding.chat_template = (
        "{% for m in messages %}{{ m.role }}: {% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
        "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    turns = [{"role": role, "content": f"{role} {at}"} for at in range(2) for role in ("user", "assistant")]
    whole, [span], _ = scored_spans(original("once", "test", {"messages": turns[:2]}), coding)
    assert whole[slice(*span)] == "<think></think>assistant 0\n"
    with pytest.raises(StageError, match=r"row twice: .* the first 2 messages differently.*score prompts and complet"):
        scored_spans(original("twice", "test", {"messages": turns}), coding)


def test_a_perplexity_that_is_no_number_is_refused():
    rows = [{"id": f"r{n}", "meta": {"nll": nll, "tokens": 2, "bytes": 4}} for n, nll in enumerate((3.0, 5000.0))]
    assert Perplexity().figures(rows[:1])["perplexity"].point() == pytest.approx(math.exp(1.5))
    with pytest.raises(StageError, match="row r1: 2,500 nats a token are a perplexity beyond any number"):
        Perplexity().figures(rows)


def test_how_rows_are_batched_does_not_change_what_is_said(predictor: Predictor, questions: list[Row]):
    together = predictor.predict(questions[:10])
    alone = [said for row in questions[:10] for said in predictor.predict([row])]
    for left, right in zip(alone, together, strict=True):
        assert left["meta"]["nll"] == pytest.approx(right["meta"]["nll"], rel=1e-5)


def test_an_encoder_has_no_perplexity(tmp_path: Path):
    masked = model_folder(tmp_path / "masked", "bert")
    with pytest.raises(ModelError, match="is a BertForMaskedLM, which sees the very tokens"):
        Predictor(masked)
    bare = model_folder(tmp_path / "bare", "bert")
    AutoModel.from_pretrained(masked).save_pretrained(bare)
    with pytest.raises(ModelError, match=r"holds no weights of cls\.predictions.* drawn at random"):
        Predictor(bare)


def test_a_row_with_nothing_to_score_is_an_error(predictor: Predictor):
    with pytest.raises(StageError, match="row c: no token"):
        predictor.predict([original("c", "test", {"prompt": "a", "completion": ""})])


def out_at(folder: Path, stage: Evaluate) -> Out:
    return Out("evaluate", stage.kind, stage.produces, "f" * 64, {}, Store.at(folder))


@pytest.mark.long
def test_the_stage_scores_compares_and_keeps_predictions(
    classifiers: tuple[Path, Path], questions: list[Row], tmp_path: Path, ray_session: Any
):
    store = Store.at(tmp_path / "data")
    train = original("train", "train", {"text": "not scored", "label": LABELS[0]})
    write_dataset(store, [*questions, train])
    data = Artifact("data", "data", "dataset", "d" * 64, store, {})
    one, two = map(str, classifiers)
    stage = Evaluate(models={"one": one, "two": two}, data="@data", baseline="one", bootstrap={"samples": 300})
    artifact = stage.run(out_at(tmp_path / "evaluate", stage), {"@data": data})

    kept = {name: Dataset.open(artifact.store.sub(f"predictions/{name}")) for name in ("one", "two")}
    right = {
        name: sum(row["meta"]["prediction"] == row["label"] for row in dataset.rows()) / len(questions)
        for name, dataset in kept.items()
    }
    assert len(kept["one"]) == len(questions)
    assert artifact.metrics["one/accuracy"] == pytest.approx(right["one"])
    assert artifact.metrics["difference/accuracy"] == pytest.approx(right["two"] - right["one"])
    for name in ("one/accuracy", "two/f1_macro", "difference/accuracy"):
        assert artifact.metrics[f"{name}_low"] <= artifact.metrics[name] <= artifact.metrics[f"{name}_high"]
    assert 0 < artifact.metrics["difference/accuracy_p"] <= 1
    assert artifact.detail["models"]["one"]["task"] == "classification"
    assert f"at n = {len(questions)}" in artifact.detail["verdicts"][0]

    again = stage.run(out_at(tmp_path / "evaluate", stage), {"@data": data})
    assert again.metrics == artifact.metrics


@pytest.mark.long
def test_a_language_model_gets_a_perplexity(causal: Path, questions: list[Row], tmp_path: Path, ray_session: Any):
    store = Store.at(tmp_path / "data")
    write_dataset(store, questions[:8])
    data = Artifact("data", "data", "dataset", "d" * 64, store, {})
    stage = Evaluate(models={"base": str(causal)}, data="@data", bootstrap={"samples": 200})
    artifact = stage.run(out_at(tmp_path / "evaluate", stage), {"@data": data})
    rows = list(Dataset.open(artifact.store.sub("predictions/base")).rows())
    mean = sum(row["meta"]["nll"] for row in rows) / sum(row["meta"]["tokens"] for row in rows)
    assert artifact.metrics["base/perplexity"] == pytest.approx(math.exp(mean))


def test_an_empty_split_says_which_splits_there_are(tmp_path: Path):
    store = Store.at(tmp_path / "data")
    write_dataset(store, [original("a", "train", {"text": "x", "label": "y"})])
    data = Artifact("data", "data", "dataset", "d" * 64, store, {})
    stage = Evaluate(models={"m": "some/model"}, data="@data")
    with pytest.raises(TilthError, match="no rows in split 'test'; it has train 1"):
        stage.run(out_at(tmp_path / "evaluate", stage), {"@data": data})


def test_a_baseline_must_be_one_of_the_models():
    recipe = {
        "name": "r",
        "stages": {
            "data": {"kind": "data", "row": "text", "source": {"kind": "inline", "rows": [{"text": "x"}]}},
            "evaluate": {"kind": "evaluate", "data": "@data", "models": {"a": "x/y", "b": "x/z"}, "baseline": "c"},
        },
    }
    with pytest.raises(RecipeError, match="'c' is none of the models; use one of: a, b"):
        load(recipe)


@pytest.mark.parametrize(("p", "word"), [(0.12, "not distinguishable"), (0.01, "new is better")])
def test_the_verdict_says_no_more_than_the_test_does(p: float, word: str):
    gap = Comparison("accuracy", Interval(0.033, -0.008, 0.074), p, "McNemar, exact")
    line = verdict("new", "old", Interval(0.835, 0.796, 0.871), Interval(0.802, 0.76, 0.84), gap, 400)
    assert line.startswith("new 83.5 % [79.6, 87.1] against old 80.2 % [76.0, 84.0]")
    assert line.endswith(f"difference +3.3 points [-0.8, +7.4], p = {p}: {word} at n = 400")


def test_less_perplexity_is_better():
    gap = Comparison("perplexity", Interval(-2.5, -3.0, -2.0), 0.0005, "permutation", less_is_better=True)
    line = verdict("new", "old", Interval(10.0, 9.5, 10.5), Interval(12.5, 12.0, 13.0), gap, 50)
    assert "p < 0.001: new is better" in line
