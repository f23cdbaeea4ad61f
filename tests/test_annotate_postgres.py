"""Answers kept in PostgreSQL: what holds of a campaign on SQLite holds there, and a crash of the server loses none."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from campaign import Campaign, write_items
from postgres import Postgres, program
from test_annotate import (  # noqa: F401
    counted,
    pairs,
    test_a_known_item_that_proved_wrong_is_taken_out_with_its_answers_kept,
    test_an_answer_that_was_committed_outlives_its_process,
    test_answers_to_another_text_are_not_mixed,
    test_checks_tell_who_does_not_read,
    test_fifty_people_at_once_lose_no_answer,
    test_from_an_invitation_to_preference_rows_that_dpo_reads,
    test_items_that_are_left_out_are_asked_no_more,
    test_kill_9_loses_nothing_that_was_acknowledged,
    test_marks_become_scores_and_pairs_of_their_models,
    test_tabs_at_once_count_once,
    test_twice_sent_is_counted_once,
    test_undo_brings_the_last_item_back_as_it_was_answered,
    test_who_is_left_out_counts_for_nothing_and_their_items_go_to_others,
)
from tilth.annotate.book import Book
from tilth.errors import StorageError

pytestmark = [
    pytest.mark.skipif(program("initdb") is None, reason="PostgreSQL is not installed"),
    pytest.mark.skipif(find_spec("psycopg") is None, reason="psycopg is not installed: tilth[postgres]"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    started = Postgres()
    yield started
    started.end()


@pytest.fixture
def store(server: Postgres) -> str:
    return server.database()


@pytest.fixture(autouse=True)
def _placed(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Campaign, "place", staticmethod(lambda source: store))


def test_a_crash_of_the_server_loses_no_answer_and_the_campaign_goes_on(server: Postgres, tmp_path: Path) -> None:
    campaign = Campaign(write_items(tmp_path / "items.jsonl", 5), overlap=1)
    ann = campaign.annotator("Ann")
    for _ in range(3):
        form = ann.fields(ann.get("/work").text, "/answer")
        assert ann.client.post("/answer", data={**form, "choice": "A"}).status_code == 200
    with campaign.book.reading() as session:
        how = {name: session.scalar(text(f"SHOW {name}")) for name in ("synchronous_commit", "fsync")}
    assert how == {"synchronous_commit": "on", "fsync": "on"}
    server.crash()
    server.start()
    assert len(counted(campaign)) == 3
    form = ann.fields(ann.get("/work").text, "/answer")
    assert ann.client.post("/answer", data={**form, "choice": "B"}).status_code == 200
    assert [item.value["choice"] for item in counted(campaign)] == ["A", "A", "A", "B"]


def test_a_database_that_does_not_wait_for_the_disk_does_for_answers(store: str) -> None:
    name = str(make_url(store).database)
    first = Book(store)
    with first.writing() as session:
        session.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    first.close()
    book = Book(store)
    with book.reading() as session:
        assert session.scalar(text("SHOW synchronous_commit")) == "off"
    with book.writing() as session:
        assert session.scalar(text("SHOW synchronous_commit")) == "on"
    book.close()


def test_a_server_out_of_reach_is_said_with_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"postgresql+psycopg://tilth:hidden@/campaign?host={tmp_path}"
    monkeypatch.setattr(Campaign, "place", staticmethod(lambda source: nowhere))
    with pytest.raises(StorageError, match="no database can be opened there") as found:
        Campaign(write_items(tmp_path / "items.jsonl", 1))
    assert "postgresql+psycopg://tilth@/campaign" in str(found.value)
    assert "hidden" not in str(found.value)
