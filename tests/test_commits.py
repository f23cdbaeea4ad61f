"""Two who commit the same unit, one of them late: a worker that was cut off comes back after its unit was redone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from helpers import labelled
from object_stores import gcs, s3
from tilth.data.finish import finish
from tilth.data.ledger import Ledger, Record, Unit, commit
from tilth.errors import RunLocked, StorageError
from tilth.lock import exclusive
from tilth.storage import Store

UNIT = Unit(0, "data/00000.parquet", 0, 5)


@pytest.fixture(params=[None, s3, gcs], ids=["disk", "s3", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened: Callable[[], AbstractContextManager[str]] | None = request.param
    with opened() if opened else nullcontext(str(tmp_path)) as place:
        yield Store.at(f"{place}/late")
        Store.at(f"{place}/late").remove()


def said(text: str) -> list[dict[str, Any]]:
    """Rows as they come of a server that answers otherwise each time."""
    return [{**row, "text": text} for row in labelled(len(UNIT))]


def texts(ledger: Ledger) -> set[str]:
    done = finish(ledger, "labelled")
    assert len(done) == len(UNIT)
    return {row["text"] for row in done.rows()}


def committed(store: Store, text: str) -> Record:
    return commit(store, UNIT, said(text), "labelled", len(UNIT))


def test_who_comes_back_after_the_unit_was_redone_leaves_it_as_it_is(store: Store) -> None:
    ledger = Ledger(store, "test", [UNIT])
    ledger.add(committed(store, "redone"))
    assert committed(store, "late") == ledger.records[0]
    assert texts(ledger) == {"redone"}


def test_who_redoes_a_unit_takes_what_was_committed_meanwhile(store: Store) -> None:
    ledger = Ledger(store, "test", [UNIT])
    late = committed(store, "late")  # its answer never came
    ledger.add(committed(store, "redone"))
    assert ledger.records == {0: late}
    assert texts(ledger) == {"late"}


def test_a_file_that_is_damaged_meanwhile_gives_way(store: Store) -> None:
    ledger = Ledger(store, "test", [UNIT])
    store.write(UNIT.file, b"PAR1 and no more")
    with pytest.raises(StorageError, match=r"00000000.parquet was damaged.*run again"):
        committed(store, "first")
    ledger.add(committed(store, "second"))
    assert texts(ledger) == {"second"}


def test_a_file_that_is_not_whole_goes_when_the_ledger_is_opened(store: Store) -> None:
    store.write(UNIT.file, b"PAR1 and no more")
    ledger = Ledger(store, "test", [UNIT])
    assert ledger.missing() == [UNIT]
    ledger.add(committed(store, "first"))
    assert texts(ledger) == {"first"}


def test_no_segment_of_the_manifest_replaces_another(store: Store) -> None:
    """As where a driver that was cut off comes back beside the one that took its place, and where one was lost."""
    units = [Unit(number, "data/00000.parquet", 5 * number, 5 * number + 5) for number in range(4)]

    def done(number: int) -> Record:
        return commit(store, units[number], said("x"), "labelled", len(UNIT))

    first, second = Ledger(store, "test", units), Ledger(store, "test", units)
    for number, ledger in ((0, first), (1, second), (2, first)):
        ledger.add(done(number))
        ledger.flush()
    assert store.list("ledger") == [f"{number:08d}.jsonl" for number in range(3)] + ["HEAD.json"]
    store.remove("ledger/00000000.jsonl")
    third = Ledger(store, "test", units)
    third.add(done(3))
    third.flush()
    lines = b"".join(store.read(f"ledger/{name}") for name in store.list("ledger") if name.endswith(".jsonl"))
    assert sorted(Record.parse(line).unit for line in lines.splitlines()) == [0, 1, 2, 3]


def test_who_was_overtaken_while_it_slept_replaces_nothing_of_what_the_other_finished() -> None:
    """It wakes within the time between two renewals, just before it makes shards of its units."""
    run = Store.at("memory://overtaken")
    store = run.sub("stages/made/0")
    with exclusive(run):
        ledger = Ledger(store, "test", [UNIT])
        ledger.add(committed(store, "ours"))
        run.write_json("LOCK", {"token": "another", "pid": 77})
        store.write("data/train-00000.parquet", b"theirs")
        with pytest.raises(RunLocked, match="in use by pid 77"):
            finish(ledger, "labelled")
    assert store.read("data/train-00000.parquet") == b"theirs"
    assert run.read_json("LOCK")["token"] == "another"
    run.remove()


def test_a_disk_without_links_takes_the_first_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    store = Store.at(tmp_path)
    assert [store.create("once", text) for text in (b"one", b"two")] == [True, False]
    assert (store.read("once"), [file.name for file in tmp_path.iterdir()]) == (b"one", ["once"])
