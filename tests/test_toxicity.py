"""The gate against abuse: its reasons, and how often it errs on real turns of people."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from tilth.augment.toxicity import Toxicity
from tilth.data.schema import generated, original
from tilth.data.transform import Inputs
from tilth.kinds import load_class


def judged(*texts, **options):
    rows = [original("o", "train", {"text": "You stupid idiot"})]
    rows += [generated(f"m.{number}", "m", 1, None, {"text": text}) for number, text in enumerate(texts)]
    return Toxicity(**options).load(Inputs(), {})(rows)


def said(path):
    """What people say in conversations of hh-rlhf."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        whole = [json.loads(line)["chosen"] for line in file]
    return [
        turn.strip() for text in whole for turn in re.findall(r"\n\nHuman: (.*?)(?=\n\nAssistant: |\Z)", text, re.S)
    ]


def test_an_insult_is_dropped_with_its_probability_and_a_question_stays():
    kept, insult, question = judged("You are a fucking idiot", "Where is my card?")
    assert kept["reason"] is None, "what the stage was given stays"
    assert re.fullmatch(r"toxic: probability (0\.9\d|1\.00) >= 0\.7", insult["reason"])
    assert insult["meta"]["toxicity"] > 0.9
    assert question["reason"] is None
    assert 0 <= question["meta"]["toxicity"] < 0.1


def test_a_text_is_judged_alike_beside_any_others():
    alone, among = judged("Shut up, you moron")[1], judged("a", "b", "Shut up, you moron", "")[3]
    assert alone["meta"] == among["meta"]
    assert judged()[0]["meta"] == {}, "no new row, nothing to judge"


def test_turns_written_to_provoke_are_dropped_far_more_often_than_harmless_ones(shared):
    shares = {}
    for name in ("harmless", "helpful"):
        rows = judged(*said(shared / f"data/hh-rlhf/{name}-base-test.jsonl.gz"))[1:]
        assert len(rows) > 5000
        shares[name] = sum(row["reason"] is not None for row in rows) / len(rows)
    assert shares["helpful"] < 0.005
    assert 0.07 < shares["harmless"] < 0.11


def test_the_threshold_is_the_users():
    text = "That is a stupid idea"
    probability = judged(text)[1]["meta"]["toxicity"]
    assert judged(text, max_probability=probability)[1]["reason"].startswith("toxic: ")
    with pytest.raises(ValueError, match="max_probability"):
        Toxicity(max_probability=0.0)
    assert load_class("transform", "toxicity") is Toxicity
