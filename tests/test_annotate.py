"""People judge answers in the browser: what is asked, what counts, what is kept out, and what comes of it."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest
import yaml
from fastapi.testclient import TestClient
from sqlalchemy import select, text

import tilth
from campaign import Browser, Campaign, write_items
from helpers import finished_stage, write_dataset
from processes import until
from serving import Served, beside_us
from tilth.annotate import people
from tilth.annotate.book import Book
from tilth.annotate.config import load_annotation
from tilth.annotate.exports import preferences
from tilth.annotate.forms import Direct, Unanswered
from tilth.annotate.items import campaign, from_file
from tilth.annotate.judgements import Judgement, judgements
from tilth.annotate.serve import kept, listening
from tilth.annotate.tables import Person
from tilth.annotate.text import shown
from tilth.data.dataset import Dataset
from tilth.data.schema import original
from tilth.errors import RecipeError, StorageError
from tilth.report.people import campaigns
from tilth.runs import Run

SCRIPT = "<script>alert(1)</script>"
#: settings under which many people answer as fast as they can
CROWD = {"serving": {"per_minute": 100000}, "checks": {"attention_every": 0}}
MARKS = {"fluency": "70", "coherence": "50", "relevance": "90"}


@pytest.fixture
def pairs(tmp_path: Path) -> Campaign:
    """Three pairs, each for two people."""
    return Campaign(write_items(tmp_path / "items.jsonl", 3), overlap=2)


@pytest.fixture
def store() -> str | None:
    """The database that is named in settings; none: beside the items."""
    return None


def exported(browser: Browser, name: str) -> list[dict]:
    return [json.loads(line) for line in browser.get(f"/manage/export/{name}.jsonl").text.splitlines()]


def counted(campaign: Campaign) -> list:
    with campaign.book.reading() as session:
        return judgements(session)


def test_from_an_invitation_to_preference_rows_that_dpo_reads(pairs: Campaign, tmp_path: Path) -> None:
    manager = pairs.manager()
    people = [pairs.annotator(name, manager) for name in ("Ann", "Ben", "Cem")]
    for number, person in enumerate(people):
        while "Which answer is better?" in person.get("/work").text:
            person.prefer("red" if number < 2 else "blue")
    told = manager.get("/manage").text
    assert "6 of 6 answers" in told
    assert "3 of 3 items" in told
    answers = exported(manager, "answers")
    assert len(answers) == 3 * 2, "every item has two people, who are done when it does"
    assert all(count == 2 for count in Counter(line["item"] for line in answers).values())
    assert "Thank you" in people[0].get("/work").text
    store = tmp_path / "answers.jsonl"
    store.write_text("".join(json.dumps(line) + "\n" for line in answers if line["person"] != 4))
    recipe = {"name": "f", "stages": {"feedback": {"kind": "feedback", "answers": str(store)}}}
    artifact = tilth.run(recipe, tmp_path / "run")["feedback"]
    rows = list(Dataset.open(artifact).rows())
    assert {row["chosen"].split()[0] for row in rows} == {"Red"}
    assert {row["rejected"].split()[0] for row in rows} == {"Blue"}
    assert (
        {row["root"] for row in rows}
        == {f"q{n}" for n in range(len(rows))}
        == {row["prompt"][9] and row["root"] for row in rows}
    )
    assert artifact.metrics["red/wins"] == 1


def test_marks_become_scores_and_pairs_of_their_models(tmp_path: Path) -> None:
    done = Campaign(write_items(tmp_path / "items.jsonl", 2), form={"kind": "direct"}, overlap=2)
    manager = done.manager()
    for name in ("Ann", "Ben"):
        person = done.annotator(name, manager)
        while "The answer" in (page := person.get("/work").text):
            good = "Red says" in page
            person.answer(**dict.fromkeys(MARKS, "90" if good else "20"))
    lines = {tuple(line["models"]): line["scores"] for line in exported(manager, "scores")}
    assert lines["red",] == dict.fromkeys(MARKS, 90.0)
    found = exported(manager, "preferences")
    assert [(pair["chosen"][:3], pair["reason"]) for pair in found] == [("Red", None)] * 2
    assert found[0]["meta"]["margin"] == 2.0, "of marks with two values one standard deviation lies on each side"


def test_nobody_sees_models_or_what_others_answered(pairs: Campaign) -> None:
    ann, ben = pairs.annotator("Ann"), pairs.annotator("Ben")
    page = ann.get("/work").text
    assert 'value="red"' not in page
    assert "blue" not in page.replace("Blue says", "")
    for path in ("/manage", "/manage/export/answers.jsonl"):
        assert ann.get(path).status_code == 403
        assert "Ben" not in ann.get(path).text
    mine = ann.fields(page, "/answer")
    foreign = {**ben.fields(ben.get("/work").text, "/answer"), "assignment": mine["assignment"], "choice": "A"}
    assert ben.client.post("/answer", data=foreign).status_code == 404
    assert counted(pairs) == []


def test_sides_are_drawn_for_each_person_and_item(tmp_path: Path) -> None:
    many = Campaign(write_items(tmp_path / "items.jsonl", 12), overlap=2)
    for name in "ab":
        person = many.annotator(name)
        for _ in range(12):
            person.prefer("red")
    sides = Counter(item.value["choice"] for item in counted(many))
    assert sides["A"] + sides["B"] == 24
    assert 4 < sides["A"] < 20
    by_item: dict[str, set] = {}
    for item in counted(many):
        by_item.setdefault(item.item, set()).add(item.value["choice"])
    assert sum(len(sides) == 2 for sides in by_item.values()) > 2, "not the same for everybody"


def test_twice_sent_is_counted_once(pairs: Campaign) -> None:
    ann = pairs.annotator("Ann")
    first, second = (ann.fields(ann.get("/work").text, "/answer") for _ in range(2))
    assert first["assignment"] == second["assignment"], "two tabs show the same item"
    for _ in range(3):
        assert ann.client.post("/answer", data={**first, "choice": "A"}).status_code == 200
    other = ann.client.post("/answer", data={**second, "choice": "B"})
    assert "another window" in other.text
    (only,) = counted(pairs)
    assert only.value["choice"] == "A"


def test_tabs_at_once_count_once(pairs: Campaign) -> None:
    ann = pairs.annotator("Ann")
    forms = [ann.fields(ann.get("/work").text, "/answer") for _ in range(4)]
    threads = [
        threading.Thread(target=ann.client.post, args=("/answer",), kwargs={"data": {**form, "choice": "A"}})
        for form in forms
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted(pairs)) == 1


def test_undo_brings_the_last_item_back_as_it_was_answered(pairs: Campaign) -> None:
    ann = pairs.annotator("Ann")
    before = ann.fields(ann.get("/work").text, "/answer")["assignment"]
    ann.answer(choice="B", comment="hm")
    page = ann.get("/work").text
    undo = ann.fields(page, "/undo")
    back = ann.client.post("/undo", data=undo).text
    assert ann.fields(back, "/answer")["assignment"] == before
    assert 'value="B" required checked' in back
    assert "hm</textarea>" in back
    assert counted(pairs) == []
    assert "nothing to undo" in ann.client.post("/undo", data=undo).text, "sent twice it takes back one"
    ann.answer(choice="A")
    assert [item.value["choice"] for item in counted(pairs)] == ["A"]


def test_a_form_from_elsewhere_is_refused(pairs: Campaign) -> None:
    ann = pairs.annotator("Ann")
    form = {**ann.fields(ann.get("/work").text, "/answer"), "choice": "A"}
    for wrong in ({**form, "csrf": "0" * 64}, {key: value for key, value in form.items() if key != "csrf"}):
        assert ann.client.post("/answer", data=wrong).status_code == 403
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert ann.client.post("/answer", data=form, headers=headers).status_code == 403
    assert ann.client.get("/work", headers={"host": "evil.example"}).status_code == 400
    assert counted(pairs) == []
    assert ann.client.post("/answer", data=form, headers={"origin": "http://localhost"}).status_code == 200
    assert len(counted(pairs)) == 1


def test_a_form_that_no_page_of_ours_made_is_refused_and_breaks_nothing(pairs: Campaign) -> None:
    ann = pairs.annotator("Ann")
    form = {**ann.fields(ann.get("/work").text, "/answer"), "choice": "A"}
    assert ann.client.post("/answer", data={**form, "csrf": "é"}).status_code == 403
    for number in ("9" * 30, "9" * 5000, "-1", "²"):
        assert ann.client.post("/answer", data={**form, "assignment": number}).status_code == 404
    with pytest.raises(Unanswered, match="whole number"):
        Direct().read({criterion.name: ["9" * 5000] for criterion in Direct().criteria}, ["m"])
    assert counted(pairs) == []


def test_the_manager_sees_all_answers_and_gives_none(pairs: Campaign) -> None:
    manager = pairs.manager()
    refused = manager.get("/work")
    assert (refused.status_code, "invite yourself" in refused.text) == (403, True)
    csrf = manager.fields(manager.get("/manage").text, "/manage/invite")["csrf"]
    for path in ("/answer", "/undo"):
        sent = {"csrf": csrf, "assignment": "1", "key": "k" * 16, "choice": "A", "answer": "1"}
        assert manager.client.post(path, data=sent).status_code == 403
    assert counted(pairs) == []


def test_who_is_not_signed_in_sees_nothing(pairs: Campaign) -> None:
    stranger = pairs.browser()
    for path in ("/", "/work", "/manage", "/manage/export/answers.jsonl"):
        assert stranger.get(path).url.path == "/login"
    ann = pairs.annotator("Ann")
    ann.send("/work", "/logout")
    assert ann.get("/work").url.path == "/login"


def test_an_invitation_is_for_one_person(pairs: Campaign) -> None:
    manager = pairs.manager()
    link = manager.send("/manage", "/manage/invite", note="").text.partition('value="http://localhost/join/')[2]
    path = f"/join/{link.partition(chr(34))[0]}"
    pairs.browser().send(path, path, name="Ann")
    assert pairs.browser().get(path).status_code == 404


def test_guessing_tokens_is_slowed_down(pairs: Campaign) -> None:
    stranger = pairs.browser()
    codes = [stranger.send("/login", "/login", token="x" * 43).status_code for _ in range(12)]
    assert codes == [401] * 10 + [429] * 2
    assert stranger.client.get("/join/whatever").status_code == 429


def test_too_many_requests_are_refused(tmp_path: Path) -> None:
    small = Campaign(write_items(tmp_path / "items.jsonl", 2), serving={"per_minute": 10})
    ann = small.annotator("Ann")
    codes = [ann.get("/work").status_code for _ in range(12)]
    assert codes[-1] == 429
    assert 9 <= codes.count(200) <= 11
    strangers = [small.browser().client.get("/login", headers={"cookie": f"tilth={n}"}) for n in range(12)]
    assert strangers[-1].status_code == 429, "a new cookie each time is still the same address"


def test_no_text_runs_in_the_browser(tmp_path: Path) -> None:
    hostile = f"{SCRIPT} [x](javascript:alert(1)) ![p](https://evil.example/p.png) `{SCRIPT}`"
    items = tmp_path / "items.jsonl"
    answers = {"red": hostile, "blue": f"```\n{SCRIPT}\n```"}
    items.write_text(json.dumps({"prompt": hostile, "answers": answers}))
    page = Campaign(items, instructions=hostile).annotator(SCRIPT).get("/work")
    assert SCRIPT not in page.text
    assert "javascript:" not in page.text.replace("(javascript:alert(1))", "")
    assert "<img" not in page.text
    assert page.text.count("<script") == 1, "our own file"
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"


def test_markdown_and_code_are_shown() -> None:
    html = shown("**bold**\n\n```python\nprint(1 < 2)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |")
    assert "<strong>bold</strong>" in html
    assert "print(1 &lt; 2)" in html
    assert "<table>" in html
    assert shown("**plain** <b>", "text") == '<pre class="plain">**plain** &lt;b&gt;</pre>'


def test_checks_tell_who_does_not_read(tmp_path: Path) -> None:
    known = write_items(tmp_path / "known.jsonl", 8, expected="red")
    checks = {"known": str(known), "known_every": 2, "attention_every": 3}
    campaign = Campaign(write_items(tmp_path / "items.jsonl", 8), overlap=2, checks=checks)
    manager = campaign.manager()
    careful, careless = campaign.annotator("careful", manager), campaign.annotator("careless", manager)
    for _ in range(9):
        page = careful.get("/work").text
        if "check of attention" in page:
            side = "A" if page.index("Please choose <strong>this") < page.index("Please do not") else "B"
            careful.answer(choice=side)
        else:
            careful.prefer("red")
        careless.answer(choice="A")
    fates = Counter((item.person, item.kind, item.passed) for item in counted(campaign) if item.kind != "work")
    assert {key for key in fates if key[0] == 2} == {(2, "known", True), (2, "attention", True)}
    assert sum(n for key, n in fates.items() if key[0] == 3 and key[2] is False) >= 2
    assert "of attention" not in str(exported(manager, "preferences")), "checks are nothing to learn from"


def test_who_is_left_out_counts_for_nothing_and_their_items_go_to_others(pairs: Campaign) -> None:
    manager = pairs.manager()
    ann, ben, cem = (pairs.annotator(name, manager) for name in ("Ann", "Ben", "Cem"))
    for person in (ann, ben):
        for _ in range(3):
            person.prefer("red")
    assert "Thank you" in cem.get("/work").text
    manager.send("/manage", "/manage/people/2")
    assert "Which answer" in cem.get("/work").text
    assert {item.person for item in counted(pairs)} == {3}


def test_an_annotator_whose_number_no_database_holds_is_none(pairs: Campaign) -> None:
    manager = pairs.manager()
    pairs.annotator("Ann", manager)
    hidden = manager.fields(manager.get("/manage").text, "/manage/people/2")
    assert manager.client.post(f"/manage/people/{1 << 70}", data=hidden).status_code == 404


def test_a_host_of_ipv6_is_asked_for_in_brackets(tmp_path: Path) -> None:
    serving = {"host": "2001:db8::7", "plain_http": True, "names": ["judge.example.org"]}
    held = Campaign(write_items(tmp_path / "items.jsonl", 1), serving=serving)
    for host, status in (("[2001:db8::7]", 200), ("judge.example.org", 200), ("[2001:db8::8]", 400)):
        assert TestClient(held.app, base_url=f"http://{host}:8400").get("/").status_code == status, host


def test_answers_to_another_text_are_not_mixed(tmp_path: Path) -> None:
    items = write_items(tmp_path / "items.jsonl", 2)
    begun = Campaign(items)
    begun.annotator("Ann").prefer("red")
    items.write_text(items.read_text().replace("Red says 1", "Red shouts 1"))
    with pytest.raises(StorageError, match=r"q1.*another text.*store"):
        Campaign(items)
    with pytest.raises(StorageError, match="answers to another form"):
        begun.book.begin(tilth.annotate.forms.Pairwise(ties=False), begun.items, 0)


def test_a_break_within_a_text_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    row = {"id": "r", "prompt": "one\u2028two\u0085three", "answers": {"red": "a", "blue": "b"}}
    path.write_bytes(json.dumps(row, ensure_ascii=False).encode() + b"\r\n\r\n")
    assert [subject.prompt for subject in from_file(path)] == ["one\u2028two\u0085three"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "p", "answers": {"a": null, "b": "x"}}', "a is no text: None"),
        ('{"prompt": [{"role": "user", "content": "p"}], "chosen": "a", "rejected": "b"}', r"prompt is no text: \[\{"),
        (r'{"prompt": "p", "answers": {"a": "\ud83d", "b": "x"}}', "surrogates not allowed"),
        (r'{"id": "\ud83d", "prompt": "p", "answers": {"a": "y", "b": "x"}}', "surrogates not allowed"),
        ('{"prompt": "p"}', "has nothing to judge"),
    ],
)
def test_what_people_could_not_be_shown_is_refused_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    """Nothing was said is no answer "None", and half of a character would end the page for whoever is given it."""
    path = write_items(tmp_path / "items.jsonl", 2)
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(StorageError, match=rf"items\.jsonl:3: .*{said}"):
        list(from_file(path))


def test_items_that_are_left_out_are_asked_no_more(tmp_path: Path) -> None:
    source = write_items(tmp_path / "items.jsonl", 600)
    wide = Campaign(source, checks={"attention_every": 5})
    wide.annotator("Ann").get("/work")
    narrow = Campaign(source, items={"limit": 3})
    manager = narrow.manager()
    assert "0 of 3 items" in manager.get("/manage").text
    person = narrow.annotator("Ben", manager)
    while "Which answer is better?" in person.get("/work").text:
        person.prefer("red")
    assert len(counted(narrow)) == 3
    with pytest.raises(StorageError, match=r"2 items with answers, such as .*set `store` to a new database"):
        Campaign(source, items={"limit": 1})
    assert len(counted(narrow)) == 3


def test_what_was_drawn_and_judged_stays_when_further_rows_count(tmp_path: Path) -> None:
    source = write_items(tmp_path / "items.jsonl", 12)
    begun = Campaign(source, items={"limit": 4})
    person = begun.annotator("Ann")
    for _ in range(3):
        person.prefer("red")
    silent = [{"id": f"s{n}", "prompt": f"Silent {n}?", "answers": {"red": "", "blue": f"So {n}."}} for n in range(60)]
    source.write_text(source.read_text() + "".join(json.dumps(line) + "\n" for line in silent))
    again = Campaign(source, items={"limit": 4})
    work = {item.id for item in again.items if item.kind == "work"}
    assert {item.item for item in counted(again)} < work
    assert len(work) == 4
    assert len(counted(again)) == 3
    assert {item.id for item in Campaign(source, items={"limit": 4}).items} == {item.id for item in again.items}


def test_a_known_item_that_proved_wrong_is_taken_out_with_its_answers_kept(tmp_path: Path) -> None:
    work, known = write_items(tmp_path / "items.jsonl", 4), write_items(tmp_path / "known.jsonl", 3, expected="red")
    checks = {"known": str(known), "known_every": 2}
    begun = Campaign(work, overlap=2, checks=checks)
    person = begun.annotator("Ann")
    while "Which answer is better?" in person.get("/work").text:
        person.prefer("blue")
    before = counted(begun)
    assert [item.passed for item in before if item.kind == "known"].count(False) >= 1
    again = Campaign(work, overlap=2)
    after = counted(again)
    assert [(item.item, item.value) for item in after] == [(item.item, item.value) for item in before]
    assert not any(item.passed is False for item in after)
    assert {item.kind for item in after} == {"work", "retired"}
    assert {item.kind for item in counted(Campaign(work, overlap=2, checks=checks))} == {"work", "known"}


def test_a_commit_waits_for_the_disk(pairs: Campaign) -> None:
    with pairs.book.writing() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2, "FULL"


def test_items_of_a_run_are_the_answers_of_its_models(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rows = [original(f"r{n}", "test", {"prompt": f"Why {n}?", "completion": "So."}) for n in range(3)]
    write_dataset(finished_stage(run, "data").store, rows, "completion")
    form, items = campaign(tmp_path, load_annotation(None))
    assert (form.kind, [item.prompt for item in items if item.kind == "work"]) == (
        "direct",
        [r["prompt"] for r in rows],
    )
    evaluated = finished_stage(run, "evaluate", "evaluate", "report").store
    for model in ("sft", "dpo"):
        # blanks that begin a continuation are nothing to judge
        said = [{**row, "meta": {"answers": [f" \n{model} says {row['id']}"]}} for row in rows]
        write_dataset(evaluated.sub(f"predictions/{model}"), said, "completion")
    form, items = campaign(tmp_path, load_annotation(None))
    work = [item for item in items if item.kind == "work"]
    assert form.kind == "pairwise"
    assert {(item.root, item.split, *item.models) for item in work} == {
        (f"r{n}", "test", "dpo", "sft") for n in range(3)
    }
    assert dict(work[0].answers)["sft"] == f"sft says {work[0].root}"


def test_rows_are_judged_that_a_first_model_has_nothing_of(tmp_path: Path) -> None:
    evaluated = finished_stage(Run(tmp_path), "evaluate", "evaluate", "report").store
    for model, numbers in (("few", (1,)), ("more", (1, 2))):
        rows = [original(f"r{n}", "test", {"prompt": f"{n}?", "completion": "."}) for n in numbers]
        said = [{**row, "meta": {"answers": [f"{model} {row['id']}"]}} for row in rows]
        write_dataset(evaluated.sub(f"predictions/{model}"), said, "completion")
    with pytest.raises(RecipeError, match=r"few of evaluate has no answer to row r2 where others have one"):
        campaign(tmp_path, load_annotation(None))


def test_a_model_that_is_called_as_a_verdict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"id": "a", "prompt": "?", "answers": {"tie": "x", "bow": "y"}}')
    with pytest.raises(RecipeError, match="a model is called 'tie'"):
        campaign(tmp_path / "items.jsonl", load_annotation(None))


def test_settings_that_are_no_settings_are_named_whatever_port_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").write_text("serving: loudly\n")
    with pytest.raises(RecipeError, match="serving"):
        load_annotation(tmp_path / "campaign.yaml", 8000)


def test_pairs_of_one_prompt_have_ids_of_their_own() -> None:
    marked = [
        Judgement(f"r{n}:completion", "work", "r", "train", "Why?", {"completion": f"So {n}."}, None, person,
                  {"scores": {"fluency": 10 * n + person}}, 1.0, 0.0)
        for n in range(3) for person in range(2)
    ]  # fmt: skip
    pairs = preferences(marked)
    assert len({pair.id for pair in pairs}) == len(pairs) == 3


def test_an_empty_answer_is_judged_as_one(tmp_path: Path) -> None:
    run = Run(tmp_path)
    row = original("r", "test", {"prompt": "Why?", "completion": "So."})
    evaluated = finished_stage(run, "evaluate", "evaluate", "report").store
    for model, said in (("mute", " "), ("loud", "loud says so")):
        write_dataset(evaluated.sub(f"predictions/{model}"), [{**row, "meta": {"answers": [said]}}], "completion")
    _, items = campaign(tmp_path, load_annotation(None))
    [item] = [item for item in items if item.kind == "work"]
    assert dict(item.answers) == {"mute": "", "loud": "loud says so"}
    assert "empty" in shown(dict(item.answers)["mute"])
    write_dataset(evaluated.sub("predictions/odd"), [{**row, "meta": {"score": 1}}], "completion")
    with pytest.raises(RecipeError, match=r"odd of evaluate has no answer to row r .*items\.models"):
        campaign(tmp_path, load_annotation(None))


def test_who_comes_stays_signed_in(pairs: Campaign) -> None:
    ann = pairs.annotator("Ann")
    for days, lands in ((6, "/work"), (6, "/work"), (8, "/login")):
        with pairs.book.writing() as session:
            session.execute(text("UPDATE visit SET seen = seen - :past"), {"past": days * 86400})
        found = ann.get("/work")
        assert found.url.path == lands
        assert lands == "/login" or "Max-Age=604800" in found.headers["set-cookie"], "the browser keeps it too"
        assert "set-cookie" not in ann.get("/work").headers, "once a day is enough"


def test_behind_a_proxy_links_and_cookies_are_its_own(tmp_path: Path) -> None:
    serving = {"public_url": "https://Judge.example.org/", "proxies": ["10.0.0.0/24"], "per_minute": 10}
    campaign = Campaign(write_items(tmp_path / "items.jsonl", 2), serving=serving)
    settings = listening(campaign.app, campaign.settings.serving)
    settings.load()

    def client(address: str, **headers: str) -> TestClient:
        return TestClient(settings.loaded_app, "https://judge.example.org", client=(address, 1), headers=headers)

    origin = {"origin": "https://judge.example.org", "host": "127.0.0.1"}  # as a proxy may name the machine behind it
    manager = Browser(client("10.0.0.7", **{"x-forwarded-for": "1.2.3.4"}, **origin))
    manager.send(f"/login/{campaign.manager_token}", "/login", token=campaign.manager_token)
    page = manager.send("/manage", "/manage/invite", note="")
    assert 'value="https://judge.example.org/join/' in page.text
    assert "secure" in client("10.0.0.7").get("/login").headers["set-cookie"].lower()

    def codes(address: str) -> list[int]:
        return [client(address, **{"x-forwarded-for": f"9.9.9.{n}"}).get("/login").status_code for n in range(12)]

    assert codes("10.0.0.7") == [200] * 12, "each is an address of its own"
    assert codes("10.9.9.9")[-1] == 429, "nobody else is believed"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("serving: {host: 0.0.0.0}", "0.0.0.0 is reached from other machines.*plain_http"),
        ("serving: {certificate: /no.pem}", "belong together"),
        ("overlap: 0", "overlap"),
        ("form: {kind: pairwize}", "form.*pairwise"),
        ("form: {kind: direct, criteria: [{name: a, question: q}, {name: a, question: r}]}", "stands twice"),
        ("form: {kind: direct, criteria: [{name: key, question: q}]}", "'key' is the name of a field"),
        ("serving: {public_url: judge.example.org}", r"public_url.*https://judge\.example\.org"),
        ("serving: {public_url: 'https://example.org/judge'}", "public_url.*path"),
        ("serving: {public_url: 'http://example.org'}", "http://example.org is reached from other.*plain_http"),
        ("serving: {proxies: ['*']}", "'\\*' is no address"),
        ("serving: {proxies: ['0.0.0.0/0'], public_url: 'https://x.org'}", "'0.0.0.0/0' is no address"),
        ("serving: {proxies: ['10.0.0.7']}", "do not know their own address"),
    ],
)
def test_a_faulty_campaign_is_refused_before_it_starts(tmp_path: Path, written: str, said: str) -> None:
    file = tmp_path / "annotation.yaml"
    file.write_text(written)
    with pytest.raises(RecipeError, match=said):
        load_annotation(file)


def test_the_example_holds(root: Path) -> None:
    for file in sorted((root / "examples/annotation").glob("*.yaml")):
        assert load_annotation(file).form is not None


def test_an_answer_that_was_committed_outlives_its_process(tmp_path: Path) -> None:
    campaign = Campaign(write_items(tmp_path / "items.jsonl", 500), overlap=1)
    with campaign.book.writing() as session:
        people.join(session, people.invite(session, ""), "Ann")
    writer = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("answer_and_die.py")), campaign.book.url],
        stdout=subprocess.PIPE, text=True, env=beside_us(),
    )  # fmt: skip
    said = [writer.stdout.readline().strip() for _ in range(40)]
    writer.kill()
    said += writer.stdout.read().split()
    writer.wait()
    with campaign.book.reading() as session:
        kept = [key.partition("/")[2] for (key,) in session.execute(text("SELECT key FROM answer"))]
    assert said[0] == "answer-1"
    assert set(said) <= set(kept)
    assert len(kept) - len(said) <= 1, "at most the one whose word was on its way"


@pytest.mark.slow
def test_it_speaks_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"serving: {{host: 0.0.0.0, certificate: {certificate}, key: {key}}}")
    with Served(write_items(tmp_path / "items.jsonl", 2), settings) as served:
        assert served.base.startswith("https://localhost:")
        page = httpx.get(f"{served.base}/login", verify=ssl.create_default_context(cafile=certificate))
        assert "secure" in page.headers["set-cookie"].lower()


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path, store: str | None) -> None:
    """Killed while eight people answer as fast as they can; then served again from the same database."""
    items, settings = write_items(tmp_path / "items.jsonl", 400), tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"overlap": 8, "store": store, **CROWD}))
    acknowledged: list[tuple[str, str]] = []
    with Served(items, settings) as served:
        manager = Browser(httpx.Client(base_url=served.base, follow_redirects=True))
        manager.send(f"/login/{served.token}", "/login", token=served.token)
        browsers = [_joined(served.base, manager, f"p{n}") for n in range(8)]
        threads = [threading.Thread(target=_answer_on, args=(browser, acknowledged)) for browser in browsers]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 60:
            threading.Event().wait(0.05)
        served.kill()
        for thread in threads:
            thread.join()
    book = Book(store or f"{items}.settings.db")
    with book.reading() as session:
        kept = [
            (str(row.assignment_id), row.key.partition("/")[2]) for row in session.execute(text("SELECT * FROM answer"))
        ]
    book.close()
    assert set(acknowledged) <= set(kept)
    assert len({number for number, _ in kept}) == len(kept), "none counts twice"
    with Served(items, settings) as again:
        assert httpx.get(f"{again.base}/healthz").json() == {"status": "ok"}
        assert again.stop() == 0


def _joined(base: str, manager: Browser, name: str) -> Browser:
    page = manager.send("/manage", "/manage/invite", note=name).text
    path = "/join/" + page.partition("/join/")[2].partition('"')[0]
    browser = Browser(httpx.Client(base_url=base, follow_redirects=True, timeout=60))
    browser.send(path, path, name=name)
    return browser


def _answer_on(browser: Browser, acknowledged: list[tuple[str, str]]) -> None:
    """Answer until the server is gone; what it said yes to is noted."""
    try:
        while "Which answer" in (page := browser.get("/work").text):
            form = browser.fields(page, "/answer")
            answer = browser.client.post("/answer", data={**form, "choice": "A"}, follow_redirects=False)
            if answer.status_code == 303:
                acknowledged.append((form["assignment"], form["key"]))
    except httpx.HTTPError:
        return


@pytest.mark.slow
def test_fifty_people_at_once_lose_no_answer(tmp_path: Path, store: str | None) -> None:
    items, settings = write_items(tmp_path / "items.jsonl", 100), tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"overlap": 5, "store": store, **CROWD}))
    acknowledged: list[tuple[str, str]] = []
    with Served(items, settings) as served:
        manager = Browser(httpx.Client(base_url=served.base, follow_redirects=True, timeout=60))
        manager.send(f"/login/{served.token}", "/login", token=served.token)
        browsers = [_joined(served.base, manager, f"p{n}") for n in range(50)]
        threads = [threading.Thread(target=_answer_on, args=(browser, acknowledged)) for browser in browsers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers = exported(manager, "answers")
    assert len(acknowledged) == len(answers) == 500
    assert set(Counter(line["item"] for line in answers).values()) == {5}


def test_a_check_of_a_recipe_loads_nothing_of_it(tmp_path: Path) -> None:
    store = tmp_path / "answers.jsonl"
    store.write_text("")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: f\nstages:\n  feedback: {{kind: feedback, answers: {store}}}\n")
    code = (
        f"from tilth.cli import main; assert main(['check', {str(recipe)!r}]) == 0; import sys;"
        "print([name for name in ('fastapi', 'sqlalchemy', 'uvicorn', 'numpy', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=beside_us())
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_figures_are_left_for_the_report_while_people_still_answer(tmp_path: Path) -> None:
    """So that a server that is killed leaves them too."""
    campaign = Campaign(write_items(tmp_path / "items.jsonl", 2), form={"kind": "pairwise"}, overlap=1)
    (tmp_path / "run").mkdir()
    file = tmp_path / "run/annotation/pairs.json"
    person = campaign.annotator("Ann")

    def told() -> int:
        return int(json.loads(file.read_text())["answers"]) if file.exists() else 0

    with kept(campaign.book, str(tmp_path / "run"), "pairs", seconds=0.05):
        assert person.prefer("red").status_code == 200
        assert until(lambda: told() == 1, 30)
        assert person.prefer("red").status_code == 200
        assert until(lambda: told() == 2, 30)
        with campaign.book.writing() as session:
            session.scalars(select(Person).where(~Person.manager)).one().left_out = True
        assert until(lambda: told() == 0, 30), "who is left out counts for nothing there either"
    assert not list(campaigns(Run(tmp_path / "run"))), "of no answer the report says nothing"
