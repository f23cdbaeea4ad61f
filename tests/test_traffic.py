"""What a stage asks of an object store, counted, beside the model that the limits in cluster/README.md come from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq
import pytest

from bench.traffic import FOOTER, LIMITS, UNIT, counted, limited, requests
from between import between
from faulty import Numbered
from helpers import labelled, write_dataset
from object_stores import gcs, s3
from tilth.data.chain import Chain, cut
from tilth.data.finish import finish
from tilth.data.ledger import Ledger
from tilth.data.schema import original, to_table
from tilth.data.worker import UnitWorker, record_of
from tilth.storage import Store


def commit_all(worker: UnitWorker, ledger: Ledger) -> None:
    """Every unit as a worker on Ray answers it."""
    for unit in ledger.missing():
        ledger.add(record_of(worker.answer(json.dumps(asdict(unit)))[1]))
    ledger.flush()


@pytest.mark.parametrize("units", [8, 24])
def test_the_model_counts_the_requests_of_a_stage(units: int) -> None:
    with between(s3) as (bucket, proxy):
        source = write_dataset(Store.at(f"{bucket}/{units}/source"), labelled(4 * units))
        proxy.seen.clear()
        ledger = Ledger(Store.at(f"{bucket}/{units}/out"), "test", cut(source, 4))
        commit_all(UnitWorker(Chain(source.store, "labelled", (Numbered(),)), ledger.store), ledger)
        done = finish(ledger, "labelled")
        counts = counted(proxy.seen)
        segments = len([asked for asked in proxy.seen if asked.path.endswith(".jsonl") and asked.method == "PUT"])
    assert len(done) == 8 * units
    assert counts == requests(units, 1, segments, len(done.shards))


def test_a_unit_takes_a_small_share_of_what_a_prefix_takes() -> None:
    second = {kind: count * 512 * 50 / 10_000 for kind, count in limited(UNIT).items()}
    assert all(second[kind] < LIMITS[kind] / 100 for kind in LIMITS)


@pytest.mark.parametrize("store", [s3, gcs])
def test_of_a_large_file_a_worker_reads_the_rows_of_its_unit_and_no_more(store: Any) -> None:
    rows = [original(f"r{i:05d}", "train", {"text": f"{i * 7919**3}" * 8, "label": "a"}) for i in range(40_960)]
    with between(store) as (bucket, proxy):
        source = write_dataset(Store.at(f"{bucket}/large"), rows[:1])
        file = source.shards[0].name
        source.store.write_with(
            file, lambda handle: pq.write_table(to_table(rows, "labelled"), handle, row_group_size=4096)
        )
        size = source.store.sizes()[file]
        units = cut(write_dataset(Store.at("memory://large"), rows), 4096)
        ledger = Ledger(Store.at(f"{bucket}/read"), "test", units)
        proxy.received = 0
        proxy.seen.clear()
        commit_all(UnitWorker(Chain(source.store, "labelled", ()), ledger.store), ledger)
        asked = [seen for seen in proxy.seen if seen.path.endswith(file)]
        received = proxy.received
    assert len(ledger.records) == 10
    assert received < 1.2 * (size + 10 * FOOTER)
    if store is s3:
        assert counted(asked) == {"HEAD": 10, "GET": 20}
