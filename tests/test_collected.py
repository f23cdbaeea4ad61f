"""Preferences that were collected elsewhere are read as they are exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tilth
from tilth.data.dataset import Dataset


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
