"""The bias report: its figures beside SciPy's, what it finds in rows that were tilted, and what it calls no finding."""

from __future__ import annotations

import csv
import json
import math
import random

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from tilth.data import bias
from tilth.data.identity import TERMS, groups_of
from tilth.data.quality import FACETS, BiasReport
from tilth.data.schema import generated, original
from tilth.errors import StageError


@pytest.fixture(scope="module")
def questions(shared):
    with open(shared / "data/banking77/train.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    return [
        original(f"q{i:04d}", "train", {"text": r["text"], "label": r["category"]}) for i, r in enumerate(rows[:1600])
    ]


def made(rows, change=lambda text: text, **payload):
    return [
        generated(f"m{row['id']}", "m", 1, None, {"text": change(row["text"]), "label": row["label"], **payload})
        for row in rows
    ]


def test_divergences_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        left, right = (rng.integers(0, 30, size=6) + np.eye(6)[0] for _ in range(2))
        assert bias.jensen_shannon(left, right) == pytest.approx(jensenshannon(left, right, base=2) ** 2)
        shares = [side / side.sum() for side in (left, right)]
        assert bias.total_variation(left, right) == pytest.approx(
            sum(max(0, a - b) for a, b in zip(*shares, strict=True))
        )
    assert bias.jensen_shannon(np.array([5.0, 0]), np.array([0, 9.0])) == pytest.approx(1)
    assert bias.total_variation(np.array([5.0, 0]), np.array([0, 9.0])) == pytest.approx(1)


def test_halves_of_one_dataset_diverge_by_no_more_than_chance(questions):
    found = bias.report(questions[:800], made(questions[800:]), "text")
    assert found["rows"] == {"originals": 800, "synthetic": 800}
    assert set(found["facets"]) == {"labels", "lengths", "topics", "sentiment", *TERMS}
    assert json.loads(json.dumps(found)) == found
    over = [name for name, facet in found["facets"].items() if facet["js_bits"] > facet["noise_bits"]]
    assert len(over) <= 2, "each facet exceeds its 95 % bound by chance in one of twenty"
    assert bias.exceeded(found, dict.fromkeys(found["facets"], 0.02)) == []


def test_chance_alone_is_told_from_a_shift_of_the_same_size():
    """Thirty rows a side may differ by what three thousand may not."""
    small, large = (bias.compared({"a": n * 5, "b": n * 5}, {"a": n * 6, "b": n * 4}) for n in (3, 300))
    assert small["js_bits"] == pytest.approx(large["js_bits"])
    assert small["noise_bits"] > small["js_bits"]
    assert large["noise_bits"] < large["js_bits"]
    rows = {"originals": 30, "synthetic": 30}
    assert bias.exceeded({"rows": rows, "facets": {"gender": small}}, {"gender": 0.001}) == []
    lines = bias.exceeded({"rows": rows, "facets": {"gender": large}}, {"identity": 0.001})
    assert lines == [
        "bias: gender of the made rows diverge by 0.007 bits from the originals, more than 0.001: "
        "'a' went from 50.0% to 60.0%"
    ]


@pytest.mark.parametrize(
    ("facet", "change"),
    [
        ("gender", lambda text: f"My wife asks: {text}"),
        ("religion", lambda text: f"{text} I pray at the mosque."),
        ("sentiment", lambda text: f"I love this great bank! {text}"),
        ("lengths", lambda text: f"{text} {text} {text}"),
        ("topics", lambda text: "Explain photosynthesis of green plants in sunlight"),
    ],
)
def test_rows_that_were_tilted_are_seen_in_their_facet(questions, facet, change):
    rows = questions[:500]
    found = bias.report(rows, made(rows, change), "text")["facets"]
    assert found[facet]["js_bits"] > 0.15 > found["labels"]["js_bits"] == 0
    assert found[facet]["js_bits"] > found[facet]["noise_bits"]


def test_labels_that_are_missing_on_both_sides_are_no_facet(questions):
    rows = questions[:200]
    one = bias.report(rows, made(rows, label="card_arrival"), "text")["facets"]["labels"]
    assert one["values"][0][0] != bias.NOBODY
    assert one["js_bits"] > 0.5
    plain = [{**row, "label": None} for row in rows]
    assert "labels" not in bias.report(plain, plain, "text")["facets"]


def test_identity_terms_are_whole_words_in_their_group():
    assert groups_of("Her brother met the king", "gender") == ["female", "male"]
    assert groups_of("Other theories, a Sherman tank", "gender") == []
    assert groups_of("A gay couple and a straight line", "orientation") == ["homosexual"]
    assert groups_of("My old card, an old man", "age") == ["old"]
    assert groups_of("a black card", "ethnicity") == []
    assert groups_of("He is deaf", "disability") == ["sensory"]


def test_sentiment_is_that_of_the_lexicon():
    assert bias.sentiments(["I love it!", "This is terrible.", "The card is blue.", ""]) == [
        "positive", "negative", "neutral", "neutral",
    ]  # fmt: skip


def test_topics_part_what_is_about_different_things():
    cards = [f"my card number {i} was stolen at the cash machine" for i in range(40)]
    plants = [f"green plant number {i} grows leaves in sunlight" for i in range(40)]
    found = bias.topics_of(cards + plants, 2)
    assert len(set(found[:40])) == len(set(found[40:])) == 1
    assert "card" in found[0] or "cash" in found[0] or "stolen" in found[0]
    assert bias.topics_of(["", " "]) == ["other", "other"]


def test_a_sample_does_not_depend_on_the_order_of_rows(questions):
    rows = questions[:400]
    new = made(questions[400:800])
    first = bias.report(rows, new, "text", sample=150)
    assert first["rows"] == {"originals": 150, "synthetic": 150}
    assert bias.report(rows[::-1], new[::-1], "text", sample=150) == first
    assert bias.report([], new, "text")["facets"] == {}


def test_a_threshold_that_is_exceeded_fails_the_stage(questions):
    rows = questions[:300]
    tilted = made(rows, lambda text: f"My wife asks: {text}")
    config = BiasReport(max_divergence={"identity": 0.1})
    measured = config.measure(rows, tilted)
    assert measured["limits"] == {"identity": 0.1}
    with pytest.raises(StageError, match=r"bias: gender .* bits from the originals, more than 0\.1"):
        config.refuse(measured, "quality.json")
    config.refuse(BiasReport(max_divergence={"identity": 1.0}).measure(rows, tilted), "quality.json")
    assert BiasReport().measure(rows, tilted)["exceeded"] == []


def test_a_facet_that_does_not_exist_is_found_before_anything_runs():
    assert BiasReport(max_divergence={"shoes": 0.1}).check()[0].where == "max_divergence.shoes"
    assert {*TERMS, "labels", "lengths", "topics", "sentiment", "identity"} == set(FACETS)
    assert math.isclose(sum(len(groups) for groups in TERMS.values()), 23)
