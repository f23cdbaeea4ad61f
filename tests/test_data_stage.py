"""The data stage: every record of the input is accounted for, splits do not leak, and failures say why."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.registry import register_implementation

import tilth
from tilth.data.dataset import Dataset
from tilth.data.source import Parquet
from tilth.errors import QuarantineError, RecipeError, StageError, TilthError
from tilth.planning import plan
from tilth.runs import Artifact


def recipe(**data: Any) -> dict[str, Any]:
    return {"name": "t", "stages": {"data": {"kind": "data", "row": "labelled", "resources": {"workers": 0}, **data}}}


def build(out: Path, **data: Any) -> tuple[Artifact, Dataset]:
    artifact = tilth.run(recipe(**data), out)["data"]
    return artifact, Dataset.open(artifact)


def balanced(counts: dict[str, Any]) -> bool:
    return counts["inputs"] == counts["accepted"] + counts["filtered"] + counts["quarantined"]


def inline(*rows: tuple[str, str]) -> dict[str, Any]:
    return {"kind": "inline", "rows": [{"text": text, "label": label} for text, label in rows]}


def numbered(count: int) -> dict[str, Any]:
    return inline(*((f"row number {n}", f"label{n % 3}") for n in range(count)))


def corrupt_folder(folder: Path) -> dict[str, int]:
    """One file for each kind of damage among good rows; returns the findings that must come out."""
    folder.mkdir()
    good = [json.dumps({"text": f"good {n}", "label": "a"}) for n in range(40)]
    lines: list[bytes] = [line.encode() for line in good[:20]]
    lines += [b'{"text": "x", "label":', b'{"text": "\xff\xff", "label": "a"}', b"[1, 2]"]
    lines += [b'{"text": "\\ud800", "label": "a"}', b'{"text": "nul \\u0000", "label": "a"}']
    lines += [
        b'{"text": 7, "label": "a"}',
        b'{"label": "a"}',
        b'{"text": null, "label": "a"}',
        b'{"text": "", "label": "a"}',
    ]
    lines += [b'{"text": "' + b"x" * 9000 + b'", "label": "a"}', b""]
    (folder / "a_lines.jsonl").write_bytes(b"\n".join(lines + [line.encode() for line in good[20:]]))
    (folder / "b_zero.jsonl").write_bytes(b"")
    packed = gzip.compress("\n".join(json.dumps({"text": f"gz {n}", "label": "b"}) for n in range(3)).encode())
    (folder / "c_whole.jsonl.gz").write_bytes(packed)
    (folder / "d_cut.jsonl.gz").write_bytes(packed[:12])
    (folder / "e_noise.jsonl.gz").write_bytes(b"no gzip at all")
    return {
        "malformed_json": 1, "invalid_utf8": 1, "not_an_object": 1, "lone_surrogate": 1, "nul": 1, "wrong_type": 1,
        "missing_column": 1, "null": 1, "empty": 1, "oversized": 1, "empty_file": 1, "broken_file": 2,
    }  # fmt: skip


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_every_kind_of_corruption_is_counted_row_by_row(tmp_path, workers, request):
    if workers:
        request.getfixturevalue("ray_session")
    expected = corrupt_folder(tmp_path / "raw")
    source = {"kind": "jsonl", "path": str(tmp_path / "raw"), "max_record_bytes": 4096}
    artifact, data = build(tmp_path / "run", source=source, max_quarantined=0.5, resources={"workers": workers})
    counts = artifact.counts
    assert balanced(counts)
    assert (counts["inputs"], counts["accepted"], counts["quarantined"]) == (43 + 13, 43, 13)
    assert counts["reasons"] == {f"quarantined/{name}": n for name, n in expected.items()}
    assert counts["labels"] == {"a": 40, "b": 3}
    rejected = list(data.rejected_rows())
    assert Counter(row["meta"]["file"] for row in rejected) == {
        "a_lines.jsonl": 10, "b_zero.jsonl": 1, "d_cut.jsonl.gz": 1, "e_noise.jsonl.gz": 1,
    }  # fmt: skip
    assert [row["meta"]["line"] for row in rejected if row["meta"]["file"] == "a_lines.jsonl"] == list(range(21, 31))
    assert all(row["text"] is None and len(row["id"]) == 16 for row in rejected)
    everything = [*data.rows(), *rejected]
    assert len({row["id"] for row in everything}) == len(everything) == counts["inputs"]
    assert str(tmp_path) not in json.dumps(everything)


def test_too_much_quarantine_fails_with_the_tally_and_can_be_allowed(tmp_path):
    corrupt_folder(tmp_path / "raw")
    source = {"kind": "jsonl", "path": str(tmp_path / "raw"), "max_record_bytes": 4096}
    with pytest.raises(QuarantineError) as caught:
        build(tmp_path / "run", source=source)
    message = str(caught.value)
    assert "13 of 56 rows (23.2%) are in quarantine" in message
    assert "2 broken_file" in message
    assert "max_quarantined=" in message
    [rejected] = (tmp_path / "run").glob("stages/data/*/rejected/*.parquet")
    assert pq.read_table(rejected).num_rows == 13
    artifact, _ = build(tmp_path / "run", source=source, max_quarantined=0.3)
    assert artifact.counts["accepted"] == 43


def test_damaged_parquet_and_csv_files(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("a", "b"):
        pq.write_table(
            pa.table({"text": [f"{name}{n}" for n in range(50)], "label": ["x"] * 50}), raw / f"{name}.parquet"
        )
    (raw / "b.parquet").write_bytes((raw / "b.parquet").read_bytes()[:-20])
    (raw / "c.parquet").write_bytes(b"")
    source = {"kind": "parquet", "path": str(raw / "*.parquet")}
    counts = build(tmp_path / "one", source=source, max_quarantined=0.1)[0].counts
    assert (counts["inputs"], counts["accepted"], counts["quarantined"]) == (52, 50, 2)
    (raw / "d.csv").write_bytes(b'text,label\n"two\nlines",x\nshort\nlong,x,y\n"open,x\nlast,x\n')
    source = {"kind": "csv", "path": str(raw / "d.csv")}
    artifact, data = build(tmp_path / "two", source=source, max_quarantined=0.9)
    assert artifact.counts["reasons"] == {"quarantined/wrong_fields": 2, "quarantined/malformed_csv": 1}
    assert [row["text"] for row in data.rows()] == ["two\nlines", "last"]
    assert [row["meta"]["line"] for row in data.rejected_rows()] == [4, 5, 6]


# duplicates and ids


class _Faulty(MemoryFileSystem):
    """A store with a fault at one file; its errors have no number, as those of fsspec's and aiohttp's."""

    protocol = "faulty"
    fault: str | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def _open(self, path: str, mode: str = "rb", **how: Any) -> Any:
        faulty = mode == "rb" and path.rpartition("/")[2].startswith("b.")
        if faulty and self.fault == "refuses":
            raise PermissionError("expired")
        found = super()._open(path, mode, **how)
        return _Slow(self, path, found.getvalue()) if faulty and self.fault == "hangs" else found

    def info(self, path: str, **how: Any) -> dict[str, Any]:
        return {**super().info(path, **how), "mtime": 1.0}


class _Slow(MemoryFile):
    """Answers once."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > 1:
            raise FSTimeoutError
        return super().read(size)


@pytest.mark.parametrize("fault", ["refuses", "hangs"])
@pytest.mark.parametrize("name", ["parquet", "csv", "jsonl.gz"])
def test_a_fault_of_the_store_is_no_damage_of_the_file(tmp_path, monkeypatch, name, fault):
    register_implementation("faulty", _Faulty, clobber=True)
    monkeypatch.setattr(_Faulty, "store", {})
    monkeypatch.setattr(_Faulty, "pseudo_dirs", [""])
    rows = {part: [{"text": f"{part} {n * 7919}", "label": "x"} for n in range(1000)] for part in "ab"}
    for part, items in rows.items():
        pq.write_table(pa.Table.from_pylist(items), tmp_path / f"{part}.parquet", row_group_size=250)
        (tmp_path / f"{part}.csv").write_text("text,label\n" + "".join(f"{i['text']},x\n" for i in items))
        (tmp_path / f"{part}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, items)).encode()))
        _Faulty().pipe(f"/x/{part}.{name}", (tmp_path / f"{part}.{name}").read_bytes())
    kind = name.partition(".")[0]
    source = {"kind": kind, "path": "faulty://x"}
    monkeypatch.setattr(_Faulty, "fault", fault)
    with pytest.raises(TilthError, match=rf"cannot read faulty://.*x/b\.{name}: (expired|FSTimeoutError)"):
        build(tmp_path / "run", source=source)
    committed = list((tmp_path / "run").glob("stages/data/*/units/*.parquet"))
    assert len(committed) <= 1, "of the file at fault no unit is there"
    if (kind, fault) == ("parquet", "refuses"):
        assert Parquet(path="faulty://x").count() is None, "an estimate does without"
    monkeypatch.setattr(_Faulty, "fault", None)
    assert build(tmp_path / "run", source=source)[0].counts["accepted"] == 2000


def test_rows_of_the_test_are_taken_out_of_training(tmp_path):
    sources = {
        "train": inline(("one", "a"), ("two", "a"), ("two", "b"), ("three", "a")),
        "validation": inline(("three", "a"), ("four", "a")),
        "test": inline(("one", "a"), ("four", "a"), ("four", "a")),
    }
    artifact, data = build(tmp_path, sources=sources)
    assert {(row["split"], row["text"]) for row in data.rows()} == {
        ("test", "one"), ("test", "four"), ("validation", "three"), ("train", "two"),
    }  # fmt: skip
    ids = {row["text"]: row["id"] for row in data.rows()}
    reasons = {(row["split"], row["text"], row["label"]): row["reason"] for row in data.rejected_rows()}
    assert reasons == {
        ("train", "one", "a"): f"duplicate: of {ids['one']} (test)",
        ("train", "two", "b"): f"duplicate: of {ids['two']} (train), labelled 'a' there",
        ("train", "three", "a"): f"duplicate: of {ids['three']} (validation)",
        ("validation", "four", "a"): f"duplicate: of {ids['four']} (test)",
        ("test", "four", "a"): f"duplicate: of {ids['four']} (test)",
    }
    assert balanced(artifact.counts)
    everything = [row["id"] for row in (*data.rows(), *data.rejected_rows())]
    assert len(set(everything)) == len(everything) == 9


@pytest.mark.parametrize(("duplicates", "kept"), [("exact", 5), ("normalized", 3), ("keep", 6)])
def test_what_counts_as_the_same(tmp_path, duplicates, kept):
    rows = inline(
        ("My card.", "a"), ("my  card", "a"), ("My card.", "a"), ("5-3", "a"), ("...", "b"), ("MY CARD!", "a")
    )
    _, data = build(tmp_path, source=rows, clean={"duplicates": duplicates})
    assert len(data) == kept
    assert len({row["id"] for row in data.rows()}) == kept


def test_copies_that_are_kept_share_a_split(tmp_path):
    source = inline(*((f"text {n % 50}", "a") for n in range(200)))
    _, data = build(tmp_path, source=source, clean={"duplicates": "keep"}, split={"test": 0.5})
    splits: dict[str, set[str]] = {}
    for row in data.rows():
        splits.setdefault(row["text"], set()).add(row["split"])
    assert len(data) == 200
    assert all(len(found) == 1 for found in splits.values())
    assert set().union(*splits.values()) == {"train", "test"}


def test_an_id_given_twice_is_quarantined(tmp_path):
    rows = [{"uid": n, "text": text, "label": "a"} for n, text in [(1, "x"), (1, "y"), (2, "z"), (2, "z")]]
    source = {"kind": "inline", "rows": rows, "columns": {"id": "uid"}}
    artifact, data = build(tmp_path, source=source, max_quarantined=0.5)
    assert {row["id"]: row["text"] for row in data.rows()} == {"1": "x", "2": "z"}
    assert artifact.counts["reasons"] == {"quarantined/duplicate_id": 1, "duplicate": 1}
    twice = next(row for row in data.rejected_rows() if row["reason"].startswith("quarantined"))
    assert (twice["id"], twice["text"], twice["meta"]["line"]) == ("1~2", "y", 2)


# splits and samples


def test_ids_stay_unique_whatever_ids_are_given(tmp_path):
    given = ["a", "a", "a~2", "a", "b/eda.0", "b", "c/eda.0", "d@1.2", "d"]
    rows = [{"id": name, "text": f"text {n}", "label": "x"} for n, name in enumerate(given)]
    source = {"kind": "inline", "rows": rows, "columns": {"id": "id"}}
    artifact, data = build(tmp_path / "run", source=source, max_quarantined=0.5)
    everything = {row["id"]: row["reason"] for row in (*data.rows(), *data.rejected_rows())}
    assert len(everything) == artifact.counts["inputs"] == len(given)
    assert {name for name, reason in everything.items() if reason is None} == {"a", "a~2", "b", "c/eda.0", "d@1.2", "d"}
    assert everything["a~3"] == everything["a~4"] == "quarantined/duplicate_id: 'a' is the id of another row"
    assert everything["b/eda.0"].startswith("quarantined/reserved_id: 'b/eda.0' is what a row made from 'b'")


def test_a_blank_id_and_a_role_that_no_chat_has_are_quarantined(tmp_path):
    rows = [{"name": name, "text": f"t{n}", "label": "a"} for n, name in enumerate(["x", " ", "y"])]
    source = {"kind": "inline", "rows": rows, "columns": {"id": "name"}}
    artifact, data = build(tmp_path / "ids", source=source, max_quarantined=0.5)
    assert artifact.counts["reasons"] == {"quarantined/missing_id": 1}
    assert sorted(row["id"] for row in data.rows()) == ["x", "y"]
    chats = [{"messages": [{"role": role, "content": "hello"}]} for role in ("user", "human")]
    source = {"kind": "inline", "rows": chats}
    artifact, _ = build(tmp_path / "chats", row="chat", source=source, max_quarantined=0.5)
    assert artifact.counts["reasons"] == {"quarantined/role": 1}


def test_a_file_with_a_header_alone_is_no_data(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n")
    with pytest.raises(StageError, match=r"no record was found in csv .*rows\.csv"):
        build(tmp_path / "run", source={"kind": "csv", "path": str(tmp_path / "rows.csv")})


def test_the_way_out_of_too_much_quarantine_is_one(tmp_path):
    source = {"kind": "inline", "rows": [{"text": 1, "label": "x"}, {"text": 2, "label": "x"}]}
    with pytest.raises(QuarantineError, match="set max_quarantined=1 to go on"):
        build(tmp_path / "run", source=source)
    assert build(tmp_path / "run", source=source, max_quarantined=1.0)[0].counts["quarantined"] == 2


def test_adding_rows_moves_none_between_splits(tmp_path):
    split = {"test": 0.2, "validation": 0.2}
    small, large = (
        {row["id"]: row["split"] for row in build(tmp_path / str(n), source=numbered(n), split=split)[1].rows()}
        for n in (100, 300)
    )
    assert small == {row_id: large[row_id] for row_id in small}
    assert set(large.values()) == {"train", "validation", "test"}


def test_a_stratified_split_and_a_sample(tmp_path):
    split = {"test": 0.5, "stratify": True}
    artifact, data = build(tmp_path, source=numbered(60), split=split, sample={"per_label": 4})
    assert Counter((row["split"], row["label"]) for row in data.rows()) == {
        **{("train", f"label{n}"): 4 for n in range(3)},
        **{("test", f"label{n}"): 10 for n in range(3)},
    }
    assert artifact.counts["reasons"] == {"not_sampled": 18}
    assert balanced(artifact.counts)


# before anything starts


def problems(**data: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        tilth.load(recipe(**data))
    return str(caught.value)


def test_wrong_columns_and_files_fail_in_the_check(tmp_path):
    (tmp_path / "a.csv").write_text("text,category\nx,y\n")
    path = str(tmp_path / "a.csv")
    found = problems(source={"kind": "csv", "path": path})
    assert "stages.data.source.columns.label: the source has no column 'label'; there are: text, category" in found
    found = problems(sources={"test": {"kind": "csv", "path": path, "columns": {"label": "categori"}}})
    assert found.count("\n") == 0
    assert (
        "stages.data.sources.test.columns.label: the source has no column 'categori'; did you mean \"category\"?"
        in found
    )
    assert "no file matches" in problems(source={"kind": "csv", "path": str(tmp_path / "b.csv")})
    found = problems(source={"kind": "csv", "path": path, "columns": {"label": "category", "completion": "text"}})
    assert "rows of type labelled have no column 'completion'; they have: text, label, id" in found


def test_contradictions_fail_in_the_check():
    rows = numbered(3)
    assert "needs exactly one of source and sources" in problems()
    assert "needs exactly one of source and sources" in problems(source=rows, sources={"test": rows})
    assert "are split already" in problems(sources={"test": rows}, split={"test": 0.1})
    assert "have no label" in problems(row="text", source=rows, sample={"per_label": 1})


def test_columns_that_only_reading_shows_fail_before_any_row_is_read(tmp_path):
    pq.write_table(pa.table({"text": ["x"], "category": ["y"]}), tmp_path / "a.parquet")
    source = {"kind": "parquet", "path": str(tmp_path / "a.parquet"), "columns": {"label": "categry"}}
    with pytest.raises(StageError, match=r'no column .categry.; did you mean "category"'):
        build(tmp_path / "run", source=source)


# identity and published data


def test_moving_the_files_changes_nothing_and_editing_them_does(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.csv").write_text("text,label\none,x\ntwo,y\n")
    first = build(tmp_path / "run", source={"kind": "csv", "path": str(tmp_path / "a")})[0]
    moved = build(tmp_path / "run", source={"kind": "csv", "path": str(tmp_path / "b/*.csv")})[0]
    assert moved == first
    (tmp_path / "b" / "b.csv").write_text("text,label\none,x\nthree,y\n")
    assert build(tmp_path / "run", source={"kind": "csv", "path": str(tmp_path / "b")})[0] != first


def test_a_dataset_that_lost_a_shard_is_made_again(tmp_path):
    _, data = build(tmp_path / "run", source=numbered(30), split={"test": 0.5})
    rows = list(data.rows())
    data.store.remove(data.shards[0].name)
    data.store.write(data.shards[1].name, b"short")
    _, again = build(tmp_path / "run", source=numbered(30), split={"test": 0.5})
    assert list(again.rows()) == rows


def test_a_limit_that_is_tightened_afterwards_holds(tmp_path):
    source = {"kind": "inline", "rows": [{"text": "a", "label": "x"}, {"text": 2, "label": "x"}]}
    build(tmp_path / "run", source=source, max_quarantined=0.5)
    with pytest.raises(QuarantineError, match=r"max_quarantined is 40\.0%"):
        build(tmp_path / "run", source=source, max_quarantined=0.4)
    assert build(tmp_path / "run", source=source, max_quarantined=0.6)[0].counts["quarantined"] == 1


def test_files_may_move_between_a_run_that_failed_and_the_next(tmp_path):
    corrupt_folder(tmp_path / "raw")
    source = {"kind": "jsonl", "path": str(tmp_path / "raw"), "max_record_bytes": 4096}
    with pytest.raises(QuarantineError):
        build(tmp_path / "run", source=source)
    [stage] = (tmp_path / "run/stages/data").iterdir()
    before = {file: file.stat().st_mtime_ns for file in stage.glob("units/*")}
    (tmp_path / "raw").rename(tmp_path / "moved")
    moved = {**source, "path": str(tmp_path / "moved")}
    with pytest.raises(QuarantineError):
        build(tmp_path / "run", source=moved)
    assert before == {file: file.stat().st_mtime_ns for file in stage.glob("units/*")}, "nothing is read again"
    assert build(tmp_path / "run", source=moved, max_quarantined=0.3)[0].counts["accepted"] == 43


def test_banking77_is_accounted_for(tmp_path, shared: Path):
    sources = {
        name: {"kind": "csv", "path": str(shared / f"data/banking77/{name}.csv"), "columns": {"label": "category"}}
        for name in ("train", "test")
    }
    artifact, data = build(tmp_path, sources=sources, sample={"per_label": 10})
    assert artifact.counts["inputs"] == 10_003 + 3_080
    assert artifact.counts["quarantined"] == 0
    assert balanced(artifact.counts)
    assert data.splits() == {"train": 770, "test": 3_079}
    train, test = ({row["text"] for row in data.split(name).rows()} for name in ("train", "test"))
    assert not train & test


def test_the_sample_that_ships_with_the_examples(tmp_path, root: Path):
    folder = root / "examples/data/banking77"
    sources = {
        name: {"kind": "csv", "path": str(folder / f"{name}.csv"), "columns": {"label": "category"}}
        for name in ("train", "test")
    }
    artifact, _ = build(tmp_path, sources=sources)
    assert len(artifact.counts["labels"]) == 10
    assert balanced(artifact.counts)
    assert "CC-BY-4.0" in (folder / "README.md").read_text()


def planned(out: Path | None, data: dict[str, Any], *overrides: str) -> list[dict[str, float]]:
    eda = {"kind": "augment", "data": "@data", "steps": [{"kind": "eda", "variants": 2}]}
    whole = tilth.load(
        {"name": "x", "stages": {"data": {"kind": "data", "row": "text", **data}, "more": eda}}, overrides
    )
    return [row["estimate"] for row in plan(whole, out)]


def test_a_plan_says_the_rows_that_it_can_know_and_no_others(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a card"}\n' * 7)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a card"}\n'))
    lines = {"source": {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")}}
    assert planned(None, lines) == [{"rows": 7}, {"rows": 21}]
    assert planned(None, {"source": {"kind": "inline", "rows": [{"text": "a"}]}}) == [{"rows": 1}, {"rows": 3}]
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), tmp_path / "rows.parquet")
    table = {"source": {"kind": "parquet", "path": str(tmp_path / "rows.parquet")}}
    assert planned(None, table) == [{"rows": 3}, {"rows": 9}]
    assert planned(None, lines, "stages.data.sample.rows=2") == [{"rows": 2}, {"rows": 6}]
    assert planned(None, lines, "stages.data.split.test=0.4") == [{"rows": 7}, {"rows": 12}], "tests are not augmented"
    assert planned(None, {"source": {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl.gz")}}) == [{}, {}]


def test_a_label_that_no_row_has_is_no_empty_sample(tmp_path):
    lines = "".join(f'{{"text": "a card {i}", "label": "{("lost", "late")[i % 2]}"}}\n' for i in range(6))
    (tmp_path / "rows.jsonl").write_text(lines)
    stage = {
        "kind": "data", "row": "labelled", "split": {},
        "source": {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")},
        "sample": {"labels": ["late", "lots"]},
    }  # fmt: skip
    with pytest.raises(
        StageError, match=r"no row has the label 'lots' that sample.labels names; did you mean .lost.\?"
    ):
        tilth.run({"name": "x", "stages": {"data": stage}}, tmp_path / "out")


def test_a_plan_knows_what_a_sample_by_label_keeps(tmp_path):
    lines = [f'{{"text": "a card {i}", "intent": "{"abc"[i % 3]}"}}\n' for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join([*lines, "no json\n", '{"text": "b", "intent": "d"}\n']))
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "columns": {"label": "intent"}}
    stage = {"row": "labelled", "sources": {"train": source, "test": source}, "max_quarantined": 1}
    stage["sample"] = {"per_label": 4}
    assert planned(None, stage)[0] == {"rows": 13 + 31}
    assert planned(None, stage, "stages.data.sample.labels=[a, d]")[0] == {"rows": 5 + 11}
    whole, shares = {**stage, "source": source, "split": {"test": 0.5}}, "stages.data.sample.rows=3"
    del whole["sources"]
    assert planned(None, whole, shares)[0] == {"rows": 3 + 16}
    artifact = tilth.run({"name": "x", "stages": {"data": {"kind": "data", **stage}}}, tmp_path / "out")["data"]
    # the same rows in train and in test count for test alone
    assert artifact.counts["splits"] == {"test": 31}


def test_a_plan_takes_rows_and_time_from_what_was_done(tmp_path):
    data = {"source": {"kind": "inline", "rows": [{"text": "a"}, {"text": "a"}]}}
    tilth.run({"name": "x", "stages": {"data": {"kind": "data", "row": "text", **data}}}, tmp_path)
    assert planned(tmp_path, data)[0] == {"rows": 1, "seconds": 0.0}
    changed = planned(tmp_path, data, "stages.data.clean.duplicates=keep")[0]
    assert changed["rows"] == 2
    assert changed["seconds"] > 0
