"""Preferences that were collected elsewhere are read as they are exported."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import tilth
from tilth.data.collected import LabelStudio
from tilth.data.dataset import Dataset
from tilth.data.readers import Bad


def read(tmp_path: Path, source: dict[str, Any], records: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows of a data stage over an export, and why the others were dropped."""
    path = tmp_path / "export.json"
    path.write_text(json.dumps(records) if isinstance(records, list) else records)
    stage = {"kind": "data", "row": "preference", "source": {**source, "path": str(path)}, "max_quarantined": 1.0}
    done = Dataset.open(tilth.run({"name": "c", "stages": {"data": stage}}, tmp_path / "run")["data"])
    return list(done.rows()), done.counts["reasons"]


def pairs(rows: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(row["prompt"], row["chosen"], row["rejected"]) for row in rows}


def test_label_studio(tmp_path: Path) -> None:
    def task(number: int, *selected: str) -> dict[str, Any]:
        result = [{"from_name": "pw", "to_name": "text1,text2", "type": "pairwise", "value": {"selected": side}}
                  for side in selected]  # fmt: skip
        done = [{"id": at, "result": [item], "was_cancelled": False} for at, item in enumerate(result)]
        cancelled = {"id": 99, "result": result[:1], "was_cancelled": True}
        data = {"prompt": f"p{number}", "text1": f"l{number}", "text2": f"r{number}"}
        return {"id": number, "data": data, "annotations": [*done, cancelled]}

    tasks = [task(1, "right"), task(2, "left", "left", "right"), task(3, "left", "right"), task(4)]
    rows, reasons = read(tmp_path, {"kind": "label_studio", "carry": ["votes"]}, tasks)
    assert pairs(rows) == {("p1", "r1", "l1"), ("p2", "l2", "r2")}
    assert {row["prompt"]: row["meta"]["votes"]["left"] for row in rows} == {"p1": 0, "p2": 2}
    assert reasons == {"no_preference": 1, "quarantined/no_pair": 1}


def test_argilla(tmp_path: Path) -> None:
    def record(number: int, *values: Any) -> dict[str, Any]:
        fields = {"prompt": f"p{number}", "response1": f"a{number}", "response2": f"b{number}"}
        responses = {"preference": [{"value": value, "user_id": f"u{at}"} for at, value in enumerate(values)]}
        return {"id": f"x{number}", "fields": fields, "metadata": {}, "suggestions": {}, "responses": responses}

    ranked = [{"value": "response2", "rank": 1}, {"value": "response1", "rank": 2}]
    records = [record(1, "response1"), record(2, ranked), record(3, "second", "second", "response1")]
    rows, _ = read(tmp_path, {"kind": "argilla", "values": {"second": "response2"}}, records)
    assert pairs(rows) == {("p1", "a1", "b1"), ("p2", "b2", "a2"), ("p3", "b3", "a3")}


def test_ultrafeedback(tmp_path: Path) -> None:
    def completion(text: str, helpful: str, honest: str) -> dict[str, Any]:
        return {"response": text, "annotations": {"helpfulness": {"Rating": helpful}, "honesty": {"Rating": honest}}}

    line = {"instruction": "p", "completions": [completion("x", "5", "1"), completion("y", "4", "4"),
            completion("z", "1", "N/A")]}  # fmt: skip
    rows, _ = read(tmp_path, {"kind": "ultrafeedback"}, json.dumps(line) + "\n")
    assert pairs(rows) == {("p", "y", "z")}
    (tmp_path / "more").mkdir()
    rows, _ = read(tmp_path / "more", {"kind": "ultrafeedback", "aspect": "helpfulness"}, json.dumps(line) + "\n")
    assert pairs(rows) == {("p", "x", "z")}


def task(prompt: str) -> bytes:
    value = {"selected": "left"}
    said = [{"result": [{"type": "pairwise", "value": value}]}]
    data = {"prompt": prompt, "text1": "l", "text2": "r"}
    return json.dumps({"data": data, "annotations": said}).encode()


def found(folder: Path, data: bytes, name: str = "export.json") -> list[tuple[int, str]]:
    (folder / name).write_bytes(data)
    source = LabelStudio(path=str(folder / name), max_record_bytes=2000)
    items = [item for piece in source.pieces() for item in source.records(piece)]
    return [(i.line, i.reason.partition(":")[0] if isinstance(i, Bad) else i.value["prompt"]) for i in items]


ARRAY = b"\xef\xbb\xbf \n[" + b" ,\n".join(task(f"p{n}") for n in (1, 2, 3)) + b"\n]\n"
WHOLE = [(1, "p1"), (2, "p2"), (3, "p3")]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", [(0, "empty_file")]),
        (b"[]", []),
        (b"[", [(1, "broken_file")]),
        (ARRAY, WHOLE),
        (ARRAY + b"]", [*WHOLE, (4, "broken_file")]),
        (ARRAY[:-4], [*WHOLE[:2], (3, "broken_file")]),
        (ARRAY.replace(b",\n", b"\n"), [(1, "p1"), (2, "broken_file")]),
        (b"[" * 100_000, [(1, "broken_file")]),
        (ARRAY.replace(b"p2", b"\xff\xfe"), [(1, "p1"), (2, "invalid_utf8"), (3, "p3")]),
        (ARRAY.replace(b"p2", b"p" * 3000), [(1, "p1"), (2, "oversized"), (3, "p3")]),
        (b'[1, {"data": {}}, ' + task("p") + b"]", [(1, "not_an_object"), (2, "no_pair"), (3, "p")]),
        (task("a") + b"\n\n" + task("b" * 3000) + b"\n{\n\xff\n" + task("c"),
         [(1, "a"), (3, "oversized"), (4, "malformed_json"), (5, "invalid_utf8"), (6, "c")]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_export_is_named_and_the_rest_is_read(tmp_path: Path, data: bytes, expected: Any) -> None:
    assert found(tmp_path, data) == expected
    assert found(tmp_path, gzip.compress(data), "export.json.gz") == expected


@pytest.mark.parametrize("form", ["array", "lines"])
def test_a_compressed_export_that_was_cut_short(tmp_path: Path, form: str) -> None:
    tasks = [task(str(hash(n) * 7919 ** (n % 9))) for n in range(10_000)]
    data = b"[" + b",".join(tasks) + b"]" if form == "array" else b"\n".join(tasks)
    packed = gzip.compress(data, 1)
    *before, last = found(tmp_path, packed[: len(packed) * 2 // 3], "export.json.gz")
    assert last == (len(before) + 1, "broken_file")
    assert len(before) > 1000
    assert found(tmp_path, packed[:12], "export.json.gz") == [(1, "broken_file")]
