"""Every row exactly once, whatever dies: the ledger under faults."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import yaml
from ray.exceptions import OutOfMemoryError, RayActorError

import tilth
from faulty import Deadly, Located, Numbered, Stillborn
from helpers import contents, final, labelled, write_dataset
from tilth.augment.base import Augmenter
from tilth.data.chain import Chain, cut
from tilth.data.clean import Cleaning
from tilth.data.dataset import Dataset, Shard
from tilth.data.engine import MANY_UNITS, run_units, units_at_once
from tilth.data.finish import Verdicts, finish
from tilth.data.ingest import Ingest, pieces
from tilth.data.isolation import Lone, isolate, refuse_hopeless
from tilth.data.ledger import Ledger, Unit
from tilth.data.parts import lengths
from tilth.data.placement import place_rows
from tilth.data.schema import original, to_table
from tilth.data.source import Jsonl
from tilth.data.split import Split
from tilth.data.transform import Resources, Transform
from tilth.data.worker import UnitWorker, record_of
from tilth.errors import QuarantineError, StageError, StorageError
from tilth.storage import Store

HERE = Path(__file__).parent
INLINE = Resources(workers=0)


def augment(
    out: Store, source: Dataset, *steps: Transform, resources: Resources = INLINE, unit_rows: int = 16
) -> Dataset:
    ledger = Ledger(out, "test", cut(source, unit_rows))
    run_units(Chain(source.store, source.row_type, steps), ledger, resources, "test")
    return finish(ledger, source.row_type)


@pytest.fixture
def source(tmp_path: Path) -> Dataset:
    return write_dataset(Store.at(tmp_path / "source"), labelled(100))


def test_every_row_and_every_variant_is_there_once(source: Dataset, tmp_path: Path) -> None:
    done = augment(Store.at(tmp_path / "out"), source, Numbered(variants=3))
    rows = list(done.rows())
    assert Counter(row["id"] for row in rows).most_common(1)[0][1] == 1
    assert sum(row["parent"] is None for row in rows) == 100
    assert Counter(row["parent"] for row in rows if row["parent"]) == {f"r{i:04d}": 3 for i in range(100)}
    assert done.counts["inputs"] + done.counts["made"] == done.counts["accepted"] == 400
    child = next(row for row in rows if row["parent"] == "r0007")
    assert (child["root"], child["via"], child["split"]) == ("r0007", "numbered", "train")
    assert child["seed"] is not None
    assert child["label"] == "label1"


def test_rows_do_not_depend_on_how_the_input_is_cut(source: Dataset, tmp_path: Path) -> None:
    texts = []
    for size in (1, 7, 100):
        store = Store.at(tmp_path / str(size))
        ledger = Ledger(store, "test", cut(source, size))
        run_units(Chain(source.store, "labelled", (Numbered(),)), ledger, INLINE, "test")
        texts.append({row["id"]: row["text"] for row in finish(ledger, "labelled").rows()})
    assert texts[0] == texts[1] == texts[2]


def test_a_row_that_raises_is_quarantined_alone(source: Dataset, tmp_path: Path) -> None:
    done = augment(Store.at(tmp_path / "out"), source, Deadly(fail=("r0020", "r0090")))
    assert done.counts["quarantined"] == 2
    assert {row["id"]: row["reason"] for row in done.rejected_rows()} == {
        "r0020": "quarantined/ValueError: cannot read r0020",
        "r0090": "quarantined/ValueError: cannot read r0090",
    }
    assert done.counts["accepted"] == 2 * 98


def test_when_every_row_raises_the_stage_fails_with_the_error(source: Dataset, tmp_path: Path) -> None:
    everything = tuple(f"r{i:04d}" for i in range(100))
    with pytest.raises(StageError, match="ValueError: cannot read"):
        augment(Store.at(tmp_path / "out"), source, Deadly(fail=everything))


def test_too_much_quarantine_fails_with_the_tally_and_leaves_the_rows_to_read(source: Dataset, tmp_path: Path) -> None:
    store = Store.at(tmp_path / "out")
    ledger = Ledger(store, "test", cut(source, 16))
    run_units(Chain(source.store, "labelled", (Deadly(fail=("r0001", "r0050")),)), ledger, INLINE, "test")
    with pytest.raises(QuarantineError, match=r"2 of 100 rows \(2.0%\).*2 ValueError.*max_quarantined"):
        finish(ledger, "labelled", max_quarantined=0.01)
    assert list(tmp_path.glob("out/rejected/*.parquet"))
    assert finish(ledger, "labelled", max_quarantined=0.03).counts["quarantined"] == 2


def test_a_large_unit_is_read_row_group_by_row_group_and_the_result_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Jsonl(path=str(write_source(tmp_path, 300)))
    work = Ingest("labelled", {"": source}, Cleaning(), pieces({"": source}))
    built = {}
    for name, limit in (("whole", 64 << 20), ("large", 0)):
        monkeypatch.setattr("tilth.data.parts.WHOLE", limit)
        monkeypatch.setattr("tilth.data.parts.ROW_GROUP_LENGTH", (limit or 20_000))
        ledger = Ledger(Store.at(tmp_path / name), "test", work.units())
        run_units(work, ledger, INLINE, "test")
        sizes = [table.num_rows for table in ledger.tables()]
        placed = place_rows(ledger, "labelled", "exact", Split(validation=0.2), None)
        finish(ledger, "labelled", placed)
        built[name] = (sizes, contents(tmp_path / name))
    assert (sum(built["large"][0]), built["whole"][0]) == (300, [300])
    assert max(built["large"][0]) < 150, "a batch ends by its bytes"
    assert built["large"][1] == built["whole"][1]


def test_a_row_group_and_a_shard_end_by_their_length_however_rows_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilth.data.finish.ROW_GROUP_LENGTH", 20_000)
    long = [{**row, "text": row["text"] + "x" * (row["id"] > "r0100") * 3000} for row in labelled(200)]
    source = write_dataset(Store.at(tmp_path / "source"), long)
    built = {}
    for name, size in (("apart", 7), ("together", 200)):
        store = Store.at(tmp_path / name)
        run_units(Chain(source.store, "labelled", ()), Ledger(store, "test", cut(source, size)), INLINE, "test")
        store.remove("units/00000000.parquet")  # resumed with a unit that is made again
        ledger = Ledger(store, "test", cut(source, size))
        run_units(Chain(source.store, "labelled", ()), ledger, INLINE, "test")
        done = finish(ledger, "labelled")
        assert list(done.rows()) == long
        built[name] = contents(tmp_path / name)
    assert built["apart"] == built["together"]
    tables = list(done.tables())
    assert tables[0].num_rows > 90, "short rows lie in long groups"
    assert max(int(lengths(table)[:-1].sum()) for table in tables) < 20_000
    assert {table.num_rows for table in tables[1:-1]} == {7}
    monkeypatch.setattr("tilth.data.finish.SHARD_GROUPS", 4)
    shards = finish(Ledger(Store.at(tmp_path / "again"), "test", []), "labelled", carried=done).shards
    assert [shard.rows for shard in shards][1:-1] == [28] * (len(shards) - 2)


def test_lengths_are_those_of_each_rows_values() -> None:
    turns = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": None}]
    rows = [original("a", "train", {"messages": turns}), original("bb", "train", {"messages": []})]
    table = to_table([*rows, original("c", "train", {"messages": None})], "chat")
    # ten columns of lineage, among them the seed, with the id, which is the root too, and the split
    lineage = 9 * 4 + 8 + 5
    assert lengths(table).tolist() == [lineage + 2 + 4 + 4 * 4 + 4 + 3 + 9, lineage + 4 + 4, lineage + 2 + 4]
    assert lengths(table.slice(1)).tolist() == lengths(table)[1:].tolist()
    packed = to_table([original("a", "train", {"input_ids": [1, 2], "labels": [1], "pack": "p"})], "packed")
    assert lengths(packed).tolist() == [lineage + 2 + 3 * 4 + 3 * 4 + 1]


def test_a_large_unit_that_was_damaged_is_named_and_one_without_a_line_is_adopted(
    source: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilth.data.parts.WHOLE", 0)
    store = Store.at(tmp_path / "out")
    run_units(Chain(source.store, "labelled", ()), Ledger(store, "test", cut(source, 100)), INLINE, "test")
    store.remove("ledger/00000000.jsonl")
    ledger = Ledger(store, "test", cut(source, 100))
    assert (ledger.missing(), sum(table.num_rows for table in ledger.tables())) == ([], 100)
    (victim,) = tmp_path.glob("out/units/*.parquet")
    victim.write_bytes(victim.read_bytes()[:-40])
    with pytest.raises(StorageError, match="damaged"):
        finish(ledger, "labelled")
    assert not victim.exists()


def test_a_worker_whose_node_does_not_see_the_run_refuses_before_it_computes(source: Dataset, tmp_path: Path) -> None:
    out, work = Store.at(tmp_path / "out"), Chain(source.store, "labelled", (Numbered(),))
    ledger = Ledger(out, "test", cut(source, 50))
    first, second = ledger.missing()
    blind = UnitWorker(work, Store.at(tmp_path / "disk"))
    with pytest.raises(StageError, match=r"unit 0: .*disk is a path that node .* does not see; give as --out a shared"):
        record_of(blind.answer(json.dumps(asdict(first)))[1])
    assert (blind.run, blind.store.list()) == (None, [])
    worker = UnitWorker(work, out)
    assert [record_of(worker.answer(json.dumps(asdict(unit)))[1]).unit for unit in (first, second)] == [0, 1]


class _Loses(Augmenter):
    def load(self, inputs, fitted):
        return lambda rows: rows[1:]


class _Doubles(Augmenter):
    def load(self, inputs, fitted):
        return lambda rows: [*rows, rows[0]]


@pytest.mark.parametrize(("step", "message"), [(_Loses(), "lost row"), (_Doubles(), "2 times")])
def test_a_transform_that_loses_or_doubles_rows_is_refused(
    step: Transform, message: str, source: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=message):
        augment(Store.at(tmp_path / "out"), source, step)


def test_global_verdicts_move_rows_between_fates_without_losing_any(source: Dataset, tmp_path: Path) -> None:
    ledger = Ledger(Store.at(tmp_path / "out"), "test", cut(source, 16))
    run_units(Chain(source.store, "labelled", (Numbered(),)), ledger, INLINE, "test")
    done = finish(ledger, "labelled", Verdicts({"r0003/numbered.0": "duplicate: of r0001"}))
    assert done.counts["reasons"] == {"duplicate": 1}
    assert done.splits() == {"train": 199}
    assert [row["id"] for row in done.rejected_rows()] == ["r0003/numbered.0"]


def test_a_ledger_of_other_work_is_refused(source: Dataset, tmp_path: Path) -> None:
    store = Store.at(tmp_path / "out")
    Ledger(store, "one", cut(source, 16))
    with pytest.raises(StorageError, match="other work"):
        Ledger(store, "two", cut(source, 16))
    with pytest.raises(StorageError, match="other work"):
        Ledger(store, "one", cut(source, 8))


def test_a_damaged_unit_is_named_removed_and_redone(source: Dataset, tmp_path: Path) -> None:
    store = Store.at(tmp_path / "out")
    work = Chain(source.store, "labelled", (Numbered(),))
    run_units(work, Ledger(store, "test", cut(source, 16)), INLINE, "test")
    victim = tmp_path / "out/units/00000002.parquet"
    victim.write_bytes(victim.read_bytes()[:-40])
    with pytest.raises(StorageError, match="damaged"):
        finish(Ledger(store, "test", cut(source, 16)), "labelled")
    ledger = Ledger(store, "test", cut(source, 16))
    assert [unit.index for unit in ledger.missing()] == [2]
    run_units(work, ledger, INLINE, "test")
    assert finish(ledger, "labelled").counts["accepted"] == 200


@pytest.mark.parametrize("damage", [b"", b"garbage", b'{"unit": 1}\n[1, 2]\n', b"\xff\xfe"])
def test_a_damaged_manifest_costs_no_work(damage: bytes, source: Dataset, tmp_path: Path) -> None:
    store = Store.at(tmp_path / "out")
    run_units(Chain(source.store, "labelled", (Numbered(),)), Ledger(store, "test", cut(source, 16)), INLINE, "test")
    for segment in (tmp_path / "out/ledger").glob("*.jsonl"):
        segment.write_bytes(damage)
    ledger = Ledger(store, "test", cut(source, 16))
    assert ledger.missing() == []
    assert finish(ledger, "labelled").counts["accepted"] == 200


def test_a_full_disk_stops_the_stage_and_with_room_again_it_goes_on(source: Dataset, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with pytest.raises((StorageError, StageError), match="No space left"):
            augment(Store.at(small / "out"), source, Numbered(variants=8))
        whole = sorted((small / "out/units").glob("0*.parquet"))
        assert whole, "some units were committed before the disk was full"
        kept = {file: file.stat().st_mtime_ns for file in whole}
        assert not list((small / "out").rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=16m", str(small)], check=True)
        ledger = Ledger(Store.at(small / "out"), "test", cut(source, 16))
        run_units(Chain(source.store, "labelled", (Numbered(variants=8),)), ledger, INLINE, "test")
        assert kept == {file: file.stat().st_mtime_ns for file in whole}, "what was committed is not redone"
        finish(ledger, "labelled")
        augment(Store.at(tmp_path / "plenty"), source, Numbered(variants=8))
        assert contents(small / "out") == contents(tmp_path / "plenty")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_disk_that_fills_up_at_the_very_end_is_said_and_costs_nothing(source: Dataset, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        out = small / "out"
        ledger = Ledger(Store.at(out), "test", cut(source, 16))
        run_units(Chain(source.store, "labelled", (Numbered(variants=8),)), ledger, INLINE, "test")
        units = sorted((out / "units").iterdir())
        (out / ".partial-killed").mkdir()
        fill(small / "filler")
        with pytest.raises(StorageError, match=r"cannot .*No space left"):
            finish(ledger, "labelled")
        assert sorted((out / "units").iterdir()) == units
        (small / "filler").unlink()
        assert finish(ledger, "labelled").counts["accepted"] == 900
        assert sorted(file.name for file in out.iterdir()) == ["data", "dataset.json", "ledger"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def fill(file: Path) -> None:
    """Take all the room that is left on a disk."""
    with file.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        while handle.write(b"x" * 512):
            pass


# --- kill -9 of the driver at every durable write ---------------------------------------------------------


def write_recipe(folder: Path, source: Path, **augment_fields: object) -> Path:
    recipe = {
        "name": "faults",
        "stages": {
            "data": {
                "kind": "data",
                "row": "labelled",
                "source": {"kind": "jsonl", "path": str(source)},
                "resources": {"workers": 0},
            },
            "augment": {"kind": "augment", "data": "@data", **augment_fields},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def write_source(folder: Path, rows: int) -> Path:
    import json

    path = folder / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"question number {i}", "label": f"l{i % 4}"}) + "\n" for i in range(rows))
    )
    return path


@pytest.mark.parametrize(
    "step",
    [pytest.param(5, marks=pytest.mark.long), pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_killed_at_any_durable_write_a_second_run_gives_the_same_bytes(step: int, tmp_path: Path) -> None:
    inline = {"resources": {"workers": 0}, "unit_rows": 10, "steps": [{"kind": "faulty:Numbered", "variants": 2}]}
    recipe = write_recipe(tmp_path, write_source(tmp_path, 30), **inline)

    command = [sys.executable, str(HERE / "run_and_die.py"), str(recipe), str(tmp_path / "runs"), str(step)]
    (tmp_path / "runs").mkdir()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    points = int(done.stdout)
    expected = final(tmp_path / "runs/whole")
    assert points > 40
    assert set(expected) == {"data", "augment"}
    for point in range(0, points, step):
        assert final(tmp_path / f"runs/{point}") == expected, f"killed at durable write {point} of {points}"


# --- on Ray -----------------------------------------------------------------------------------------------


def test_ray_data_gives_the_same_bytes_as_one_process(ray_session: object, source: Dataset, tmp_path: Path) -> None:
    augment(Store.at(tmp_path / "inline"), source, Numbered(variants=2))
    augment(Store.at(tmp_path / "ray"), source, Numbered(variants=2), resources=Resources(workers=2))
    assert contents(tmp_path / "inline") == contents(tmp_path / "ray")


@pytest.mark.parametrize(
    ("rows", "size", "units", "workers", "found"),
    [
        (1, 8, 100, 1, 1),  # one unit, whatever it holds
        (512, 8, 1000, 1, 64),  # as many small ones as the engine's rows fill
        (512, 512, 1000, 1, 2),  # of large ones the next is under way when one ends
        (512, 100, 1000, 1, 6),
        (512, 8, 12, 1, 12),
        (512, 8, 64, 4, 16),  # one worker takes no more than its share
        (512, 8, 3, 4, 1),
        (4096, 1, 9000, 1, 64),  # each is a thread
    ],
)
def test_units_at_once_hold_the_rows_that_should_be_in_flight(
    rows: int, size: int, units: int, workers: int, found: int
) -> None:
    class Asking(Transform):
        in_flight = property(lambda _: rows)

    pieces = [Unit(n, "source", n * size, (n + 1) * size) for n in range(units)]
    (leg,) = Chain(Store.at("nowhere"), "text", (Numbered(), Asking())).legs
    assert units_at_once(leg.in_flight, pieces, workers) == found


def test_every_actor_of_the_pool_is_busy_on_small_inputs(ray_session: object, source: Dataset, tmp_path: Path) -> None:
    done = augment(Store.at(tmp_path / "out"), source, Located(seconds=0.02), resources=Resources(workers=2))
    rows = Counter(row["meta"]["pid"] for row in done.rows() if row["parent"])
    assert len(rows) == 2
    assert min(rows.values()) >= 20


@pytest.mark.long
def test_a_row_that_kills_its_worker_is_found_and_its_neighbours_survive(ray_session: object, tmp_path: Path) -> None:
    source, two = write_dataset(Store.at(tmp_path / "source"), labelled(200)), Resources(workers=2)
    # so many units that the next one of a worker waits at it, and is lost with it
    assert len(cut(source, 6)) >= MANY_UNITS * 2
    done = augment(Store.at(tmp_path / "out"), source, Deadly(kill=("r0042",)), resources=two, unit_rows=6)
    assert [row["id"] for row in done.rejected_rows()] == ["r0042"]
    assert done.counts["quarantined"] == 1
    assert done.counts["accepted"] == 2 * 199


@pytest.mark.slow
def test_workers_that_die_while_they_load_are_noticed_before_all_units_were_tried(
    ray_session: object, tmp_path: Path
) -> None:
    source, loads = write_dataset(Store.at(tmp_path / "source"), labelled(300)), tmp_path / "loads"
    step, two = Stillborn(file=str(loads)), Resources(workers=2)
    with pytest.raises(StageError, match="every worker process dies while it loads"):
        augment(Store.at(tmp_path / "out"), source, step, resources=two, unit_rows=1)
    assert len(loads.read_text().splitlines()) < 40


@pytest.mark.parametrize("dies", [RayActorError(), OutOfMemoryError("killed by the memory monitor")])
def test_a_piece_of_a_source_that_kills_its_worker_ends_the_stage(
    dies: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Jsonl(path=str(write_source(tmp_path, 30)))
    work = Ingest("labelled", {"": source}, Cleaning(), pieces({"": source}))

    def dead(answer: object) -> None:
        raise dies

    monkeypatch.setattr("ray.remote", MagicMock())
    monkeypatch.setattr("ray.get", dead)
    with pytest.raises(StageError, match=r"rows\.jsonl kills every worker.*record 1 on.*fewer workers"):
        isolate(Lone(work, Store.at(tmp_path / "out"), [Resources(workers=2)]), work.units()[0])


def test_workers_that_cannot_import_a_step_say_so_and_do_not_blame_memory(
    ray_session: object, source: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ModuleType("only_here")
    here.Numbered = type("Numbered", (Numbered,), {"__module__": "only_here"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "only_here", here)
    Ledger(Store.at(tmp_path), "alone", cut(source, 100))
    work = Chain(source.store, "labelled", (here.Numbered(),))  # type: ignore[attr-defined]
    with pytest.raises(StageError, match="cannot start on this cluster: ModuleNotFoundError: No module named 'only_"):
        refuse_hopeless(Lone(work, Store.at(tmp_path), [Resources(workers=1)]))


def test_a_unit_that_only_the_company_killed_is_committed_by_a_worker_alone(
    ray_session: object, source: Dataset, tmp_path: Path
) -> None:
    [unit] = cut(source, 100)
    work = Chain(source.store, "labelled", (Numbered(),))
    Ledger(Store.at(tmp_path), "alone", [unit])
    record = isolate(Lone(work, Store.at(tmp_path), [Resources(workers=1)]), unit)
    assert (record.tally.inputs, record.tally.accepted) == (100, 200)


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(0.1, marks=pytest.mark.slow),
        pytest.param(0.5, marks=pytest.mark.long),
        pytest.param(0.9, marks=pytest.mark.slow),
    ],
)
def test_driver_killed_midway_redoes_only_what_was_not_committed(share: float, tmp_path: Path) -> None:
    steps = [{"kind": "faulty:Numbered", "variants": 2, "seconds": 0.1}]
    recipe = write_recipe(tmp_path, write_source(tmp_path, 80), steps=steps, unit_rows=4, resources={"workers": 2})
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tilth", "run", str(recipe), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    units: set[str] = set()
    deadline = time.monotonic() + 600
    while len(units) < 20 * share and first.poll() is None and time.monotonic() < deadline:
        units = {file.name for file in out.glob("stages/augment/*/units/0*.parquet")}
        time.sleep(0.02)
    first.kill()
    first.wait()
    kept = {file: file.stat().st_mtime_ns for file in out.glob("stages/augment/*/units/0*.parquet")}
    assert kept, "nothing was committed before the kill"
    second = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    redone: set[Path] = set()
    while second.poll() is None:
        for file, stamp in kept.items():
            with contextlib.suppress(FileNotFoundError):  # a dataset that is finished has no more need of its units
                if file.stat().st_mtime_ns != stamp:
                    redone.add(file)
        time.sleep(0.01)
    assert second.returncode == 0, second.communicate()[1].decode()
    assert not redone
    done = Dataset.open(Store.at(next(out.glob("stages/augment/*"))))
    assert Counter(row["id"] for row in done.rows()).most_common(1)[0][1] == 1
    assert done.counts["accepted"] == 240


def test_a_step_on_a_column_that_the_rows_lack_is_refused_before_any_work(tmp_path: Path) -> None:
    from tilth.augment.stage import Augment
    from tilth.data.schema import original
    from tilth.recipe import Recipe
    from tilth.runs import Run

    class Completions(tilth.Stage):
        produces = "dataset"

        def run(self, out, inputs):
            rows = [original("a", "train", {"prompt": "p", "completion": "c"})]
            return out.artifact(counts=write_dataset(out.store, rows, "completion").counts)

    augment = Augment(data="@rows", steps=[Numbered()], resources=INLINE)
    with pytest.raises(StageError, match=r"column 'text', which completion rows do not have.*prompt, completion"):
        Run(tmp_path).execute(Recipe(name="x", stages={"rows": Completions(), "augment": augment}))


def test_units_of_very_large_data_are_larger_and_not_more():
    shards = tuple(Shard(f"data/{index:05d}.parquet", "train", 262_144, 0, "") for index in range(3815))
    units = cut(Dataset(Store.at("memory://large"), "text", shards))
    assert sum(map(len, units)) == 3815 * 262_144 > 1e9
    assert len(units) < 110_000
    assert len(cut(Dataset(Store.at("memory://small"), "text", shards[:4]))) == 2048
