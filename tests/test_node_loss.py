"""A machine of the cluster goes, with all that runs on it: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lose_a_node import ROWS, STEPS

#: starts a Ray of its own, as tests of `ray_session` do
SCRIPT = Path(__file__).with_name("lose_a_node.py")


def lost_in(what: str, folder: Path) -> dict[str, Any]:
    path = os.pathsep.join([str(SCRIPT.parent), *(path for path in sys.path if path)])
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), what, str(folder)], capture_output=True, text=True, timeout=500,
        env={**environment, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.long
def test_a_node_that_goes_while_rows_are_made_loses_none_and_doubles_none(tmp_path: Path) -> None:
    found = lost_in("augment", tmp_path)
    assert found["lost"] == 1
    assert found["nodes"] >= 2
    assert found["same"]
    assert (found["counts"]["inputs"], found["counts"]["accepted"], found["rejected"]) == (ROWS, 3 * ROWS, 0)


@pytest.mark.slow
def test_training_goes_on_elsewhere_when_its_node_goes_and_the_trace_is_the_same(tmp_path: Path) -> None:
    found = lost_in("sft", tmp_path)
    assert found == {"same": True, "steps": STEPS, "lost": 1}
