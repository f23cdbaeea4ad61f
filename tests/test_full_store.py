"""Rows for which Ray's object store has no room: they go by way of the disk, or it is said that they cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fill_the_store import ROWS, VARIANTS
from serving import beside_us

#: starts a Ray of its own, as tests of `ray_session` do
SCRIPT = Path(__file__).with_name("fill_the_store.py")


def augmented(disk: str, folder: Path) -> dict[str, Any]:
    environment = {name: value for name, value in beside_us().items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), disk, str(folder)], capture_output=True, text=True, timeout=300, env=environment
    )
    lines = done.stdout.splitlines()
    assert lines, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


@pytest.mark.long
def test_what_is_larger_than_the_object_store_goes_by_way_of_the_disk_every_row_once(tmp_path: Path) -> None:
    found = augmented("sound", tmp_path)
    made = ROWS * (1 + VARIANTS + 1)
    assert (found["rows"], found["different"]) == (made, made)
    assert (found["counts"]["inputs"], found["counts"]["accepted"], found["counts"]["filtered"]) == (ROWS, made, 0)
    assert found["on_disk"] > 0


@pytest.mark.long
def test_where_the_disk_is_full_too_it_is_said_what_to_do(tmp_path: Path) -> None:
    found = augmented("full", tmp_path)
    assert found["error"].startswith("ClusterError: ")
    for words in ("object store on their node is full", "free that disk", "unit_rows", "--object-store-memory"):
        assert words in found["error"]
    assert found["seconds"] < 60


@pytest.mark.long
def test_where_nothing_can_be_spilled_it_is_said_before_any_work(tmp_path: Path) -> None:
    found = augmented("broken", tmp_path)
    assert found["error"].startswith("ClusterError: the object store cannot spill to disk on ")
    assert f"{tmp_path / 'spilled'}: Not a directory" in found["error"]
    assert "--object-spilling-directory" in found["error"]
    assert found["seconds"] < 60


@pytest.mark.long
def test_a_disk_that_breaks_on_the_way_is_named_and_once_it_is_mended_the_run_goes_on(tmp_path: Path) -> None:
    found = augmented("breaks", tmp_path)
    made = ROWS * (1 + VARIANTS + 1)
    assert (found["rows"], found["different"]) == (made, made)
    [said] = found["said"]
    assert said.startswith("more: waits for a place to go on: the object store cannot spill to disk on ")
    assert f"{tmp_path / 'spilled'}: Not a directory" in said
