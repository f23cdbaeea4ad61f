"""An object store under load: it refuses, drops connections, and answers with an error what it has done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import tilth
from between import Asked, between, calm, stormy
from object_stores import gcs, s3
from tilth.data.dataset import Dataset
from tilth.lock import exclusive
from tilth.storage import Store

ROWS = 40
#: more than s3fs sends at once
LONG = 101 << 20
OpenStore = Callable[[], AbstractContextManager[str]]
STORES = [s3, gcs]


def recipe() -> dict[str, Any]:
    """Rows, each with two variants of its own random numbers, in ten units."""
    rows = [{"text": f"where is card number {n}", "label": str(n % 3)} for n in range(ROWS)]
    inline = {"workers": 0}
    return {"name": "load", "stages": {
        "data": {
            "kind": "data", "row": "labelled", "source": {"kind": "inline", "rows": rows}, "resources": inline,
        },
        "more": {
            "kind": "augment", "data": "@data", "steps": [{"kind": "faulty:Numbered", "variants": 2}],
            "unit_rows": 4, "resources": inline,
        },
    }}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("store", "share"), [(s3, 0.3), (gcs, 0.15)])
def test_a_run_on_a_store_that_fails_a_share_of_requests_ends_with_each_row_once(
    store: OpenStore, share: float, tmp_path: Path
) -> None:
    alone = Dataset.open(tilth.run(recipe(), tmp_path / "alone")["more"])
    with between(store, stormy(7, share)) as (bucket, proxy):
        done = Dataset.open(tilth.run(recipe(), f"{bucket}/load")["more"])
        rows = list(done.rows())
        proxy.plan = calm
        left = Store.at(f"{bucket}/load").list()
    assert rows == list(alone.rows())
    assert Counter(row["id"] for row in rows).most_common(1)[0][1] == 1
    assert {fault for fault, _ in proxy.faults} == {"busy", "cut", "late", "lost", "half"}
    assert "LOCK" not in left


@pytest.mark.long
@pytest.mark.parametrize("fault", ["late", "lost"])
@pytest.mark.parametrize("store", STORES)
def test_what_took_effect_though_the_store_said_otherwise_is_known_as_ones_own(
    store: OpenStore, fault: str, tmp_path: Path
) -> None:
    """The first request of every kind to every file is done and not confirmed: PUT, conditional PUT and DELETE too."""
    known: set[tuple[str, str]] = set()

    def first(asked: Asked, before: int) -> str | None:
        fresh = (asked.method, asked.path) not in known and asked.method not in ("GET", "HEAD")
        known.add((asked.method, asked.path))
        return fault if fresh else None

    alone = Dataset.open(tilth.run(recipe(), tmp_path / "alone")["more"])
    with between(store, first) as (bucket, proxy):
        run = tilth.run(recipe(), f"{bucket}/{fault}")
        assert {"PUT", "POST", "DELETE"} & {asked.method for _, asked in proxy.faults}
        proxy.plan = calm
        assert list(Dataset.open(run["more"]).rows()) == list(alone.rows())
        assert "LOCK" not in Store.at(f"{bucket}/{fault}").list()


def test_a_conditional_write_beside_which_another_ended_is_sent_again() -> None:
    with between(s3, lambda asked, before: "conflict" if asked.method == "PUT" and before < 2 else None) as (bucket, _):
        store = Store.at(f"{bucket}/conflict")
        assert store.create("once", b"1")
        assert not store.create("once", b"2")
        assert store.read("once") == b"1"


@pytest.mark.long
def test_a_long_file_whose_last_answer_was_lost_is_sent_again() -> None:
    def ends(asked: Asked, before: int) -> str | None:
        first = not any(fault == "lost" for fault, _ in proxy.faults)
        return "lost" if first and asked.method == "POST" and "uploadId=" in asked.query else None

    with between(s3) as (bucket, proxy):
        store = Store.at(f"{bucket}/long")
        proxy.plan = ends
        store.write("whole", bytes(LONG))
        assert [fault for fault, _ in proxy.faults] == ["lost"]
        assert store.sizes() == {"whole": LONG}


def test_a_lease_that_cannot_be_given_back_does_not_undo_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with between(s3) as (bucket, proxy), exclusive(Store.at(f"{bucket}/kept")):
        proxy.plan = lambda asked, before: "busy"
