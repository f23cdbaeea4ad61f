"""Personal data: what is found, masked and said of it, and that nothing asks the network."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tilth.augment.pii import Pii, unnamed
from tilth.data.schema import generated, original
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.kinds import load_class

LETTER = "My name is John Smith, write to john.smith@example.com or call me at 212-555-0187."


def judged(*texts, **options):
    field = options.get("field", "text")
    rows = [original("o", "train", {field: LETTER if field == "text" else []})]
    rows += [generated(f"m.{number}", "m", 1, None, {field: text}) for number, text in enumerate(texts)]
    return Pii(**options).load(Inputs(), {})(rows)


def test_a_row_with_personal_data_is_dropped_and_its_reason_counts_without_quoting():
    kept, letter, plain = judged(LETTER, "Where is my card?")
    assert kept["reason"] is None, "what the stage was given stays"
    assert kept["text"] == LETTER
    assert letter["reason"] == "pii: 1 EMAIL_ADDRESS, 1 PERSON, 1 PHONE_NUMBER"
    assert letter["meta"] == {"pii": {"EMAIL_ADDRESS": 1, "PERSON": 1, "PHONE_NUMBER": 1}}
    assert (plain["reason"], plain["meta"]) == (None, {})


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        ("my card number is 4111 1111 1111 1111", "CREDIT_CARD"),
        ("send it to GB33BUKB20201555555555", "IBAN_CODE"),
        ("the server at 192.168.13.12 is down", "IP_ADDRESS"),
        ("my social security number is 536-90-4399", "US_SSN"),
        ("pay 16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ in bitcoin", "CRYPTO"),
    ],
)
def test_numbers_are_known_by_their_form(text, entity):
    assert entity in judged(text)[1]["meta"]["pii"]


def test_a_number_that_fails_its_checksum_is_none():
    assert judged("my card number is 4111 1111 1111 1112", entities=("CREDIT_CARD",))[1]["reason"] is None


def test_a_masked_row_stays_without_what_was_found():
    kept, letter = judged(LETTER, mode="mask")
    assert kept["text"] == LETTER
    assert letter["reason"] is None
    assert letter["text"] == "My name is <PERSON>, write to <EMAIL_ADDRESS> or call me at <PHONE_NUMBER>."
    assert letter["meta"]["pii"]["PERSON"] == 1


def test_what_was_masked_in_a_row_is_masked_in_what_it_carries():
    carried = {
        "instruction": LETTER,
        "answer": {"to": ["john.smith@example.com", "John Smithson"], "size": 3},
        "usage": {"prompt_tokens": 5},
    }
    row = {**generated("m", "m", 1, None, {"text": LETTER}), "meta": carried}
    found = Pii(mode="mask").load(Inputs(), {})([row])[0]
    assert found["meta"]["instruction"] == found["text"]
    assert found["meta"]["answer"] == {"to": ["<EMAIL_ADDRESS>", "John Smithson"], "size": 3}
    assert found["meta"]["usage"] == {"prompt_tokens": 5}
    assert found["meta"]["pii"] == {"EMAIL_ADDRESS": 1, "PERSON": 1, "PHONE_NUMBER": 1}


def test_a_found_text_is_masked_whole_also_where_another_begins_it_and_where_it_is_a_number():
    names = {"John": "PERSON", "John Smith": "PERSON", "2125550187": "PHONE_NUMBER"}
    assert unnamed({"a": "John Smith, Johnny", "b": {"c": 2125550187, "d": [True, None]}}, names) == {
        "a": "<PERSON>, Johnny",
        "b": {"c": "<PHONE_NUMBER>", "d": [True, None]},
    }
    noted = {"usage": {"prompt_tokens": 2024}, "file": "/Boston/a.jsonl", "line": 2024}
    assert unnamed({**noted, "x": 2024}, {"2024": "DATE_TIME", "Boston": "LOCATION"}) == {**noted, "x": "<DATE_TIME>"}


def test_every_turn_of_a_conversation_is_masked_by_itself():
    talk = [
        {"role": "user", "content": "Write to a.b@example.com"},
        {"role": "assistant", "content": "To c@example.org?"},
    ]
    row = judged(talk, field="messages", mode="mask", entities=("EMAIL_ADDRESS",))[1]
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    assert [turn["content"] for turn in row["messages"]] == ["Write to <EMAIL_ADDRESS>", "To <EMAIL_ADDRESS>?"]
    assert row["meta"] == {"pii": {"EMAIL_ADDRESS": 2}}


def test_only_the_entities_asked_for_count_and_only_if_they_are_sure():
    assert judged(LETTER, entities=("IBAN_CODE",))[1]["reason"] is None
    bare = "It is 212-555-0187."
    assert judged(bare)[1]["reason"] == "pii: 1 PHONE_NUMBER"
    assert judged(bare, min_score=0.6)[1]["reason"] is None


def test_an_entity_that_nobody_knows_ends_the_stage_before_any_row():
    with pytest.raises(StageError, match=r"cannot find SHOE_SIZE; there are .*EMAIL_ADDRESS"):
        Pii(entities=("SHOE_SIZE",)).load(Inputs(), {})


def test_questions_that_name_nobody_are_seldom_taken_for_personal_data(shared):
    with open(shared / "data/banking77/train.csv", newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)][::20]
    rows = judged(*texts)[1:]
    assert sum(row["reason"] is not None for row in rows) / len(rows) < 0.015


def test_threads_may_share_it():
    gate = Pii().load(Inputs(), {})
    found = {}

    def run(number):
        rows = [generated(f"{number}.{i}", "m", 1, None, {"text": LETTER if i % 2 else "Hello."}) for i in range(20)]
        found[number] = [row["reason"] for row in gate(rows)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found[0]) == [None, "pii: 1 EMAIL_ADDRESS, 1 PERSON, 1 PHONE_NUMBER"] * 10
    assert all(reasons == found[0] for reasons in found.values())
    assert len(found) == 4


OFFLINE = """
import logging, socket
logging.basicConfig(level=logging.INFO)
asked = []
def refuse(host, *_, **__):
    asked.append(host)
    raise socket.gaierror(-2, "Name or service not known")
socket.getaddrinfo = refuse
from tilth.augment.pii import Pii
from tilth.data.schema import generated
from tilth.data.transform import Inputs
text = "Five euros to a@example.co.uk, see http://foo.example.com/x"
rows = Pii(entities=("EMAIL_ADDRESS", "URL")).load(Inputs(), {})([generated("m", "m", 1, None, {"text": text})])
print(rows[0]["reason"], asked)
"""


@pytest.mark.long
def test_the_network_is_never_asked_and_nothing_is_cached_or_warned_of(tmp_path: Path):
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "pii: 1 EMAIL_ADDRESS, 1 URL []\n"
    assert "WARNING" not in done.stderr
    assert "ERROR" not in done.stderr
    assert "Public Suffix" not in done.stderr
    assert list(tmp_path.rglob("*tldextract*")) == []


def test_the_recipe_knows_it_by_kind():
    assert load_class("transform", "pii") is Pii
