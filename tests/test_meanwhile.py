"""What is under way before it is asked for: in order, no more than may be, and faults where they belong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilth.data import ledger as ledgers
from tilth.data.ledger import Ledger, Unit, commit
from tilth.data.schema import original
from tilth.meanwhile import ahead
from tilth.storage import Store


def test_results_come_in_order_and_the_next_ones_are_under_way() -> None:
    """Each of four waits for the three others, which nothing would do that took one after another."""
    met = threading.Barrier(4, timeout=20)
    asked: list[int] = []

    def work(item: int) -> int:
        met.wait()
        return item * 10

    def items() -> Iterator[int]:
        for item in range(12):
            asked.append(item)
            yield item

    found = []
    for item, made in ahead(work, items(), 4, lambda _: 1, 100):
        found.append((item, made))
        assert len(asked) <= len(found) + 4, "no more is asked for than may be under way, and the next one"
    assert found == [(item, item * 10) for item in range(12)]


@pytest.mark.parametrize(("room", "most"), [(100.0, 3), (5.0, 2), (1.0, 1)])
def test_no_more_are_under_way_than_have_room_but_one(room: float, most: int) -> None:
    lock, begun, given, worst = threading.Lock(), 0, 0, 0

    def work(item: int) -> int:
        nonlocal begun, worst
        with lock:
            begun += 1
            worst = max(worst, begun - given)
        return item

    for _ in ahead(work, range(20), 3, lambda _: 2.0, room):
        with lock:
            given += 1
    # one was given and is still in the caller's hands when the next is begun
    assert (begun, given) == (20, 20)
    assert worst <= most


def test_what_fails_is_raised_in_its_place_and_nothing_more_is_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 5:
            raise ValueError("five")
        return item

    found = []
    with pytest.raises(ValueError, match="five"):
        found += [item for item, _ in ahead(work, range(100), 3, lambda _: 1, 3)]
    assert max(begun) <= 8
    several = ahead(work, range(5), 3, lambda _: 1, 3)
    assert [next(several)[0], next(several)[0]] == [0, 1]
    several.close()  # who does not go on waits for nothing
    assert not any(thread.name.startswith("tilth-ahead") for thread in threading.enumerate())


def test_committed_units_are_fetched_several_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.at(tmp_path)
    units = [Unit(number, "source", number, number + 1) for number in range(16)]
    records = [commit(store, unit, [original(f"r{unit.index}", "train", {"text": "x"})], "text") for unit in units]
    ledger = Ledger(store, "f", units)
    assert sorted(ledger.records) == [record.unit for record in records]
    met, checked = threading.Barrier(ledgers.AHEAD, timeout=20), ledgers.checked

    def together(*asked: object) -> object:
        met.wait()
        return checked(*asked)  # type: ignore[arg-type]

    monkeypatch.setattr(ledgers, "checked", together)
    assert [table["id"].to_pylist() for table in ledger.tables()] == [[f"r{number}"] for number in range(16)]
