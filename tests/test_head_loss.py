"""The head of the cluster goes, and all of Ray with it: a run ends and says so, and goes on elsewhere from storage."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import tilth
from lose_a_node import ROWS, recipe
from namespaces import a_head
from processes import until
from serving import beside_us
from tilth.data.dataset import Dataset

#: a driver that has lost its head has so long to end
ENDS_WITHIN = 150


def driver(written: Path, out: Path, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tilth", "run", str(written), "--out", str(out)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**beside_us(), "RAY_ADDRESS": address},
    )  # fmt: skip


def plain(rows: Any) -> list[Any]:
    return [(row["id"], row["parent"], row["via"], row["text"], row["label"]) for row in rows]


@pytest.mark.slow
def test_a_run_that_lost_the_head_ends_and_goes_on_under_another(tmp_path: Path) -> None:
    written, out = tmp_path / "recipe.yaml", tmp_path / "out"
    written.write_text(yaml.safe_dump(json.loads(json.dumps(recipe(2)))))

    def committed() -> int:
        return len(list(out.glob("stages/more/*/units/*.parquet")))

    with a_head(cpus=2) as (address, lose):
        first = driver(written, out, address)
        assert until(lambda: committed() >= 12 or first.poll() is not None, 120)
        lose()
        start = time.monotonic()
        told, _ = first.communicate(timeout=ENDS_WITHIN)
    assert first.returncode != 0, told
    assert "Failed to connect to GCS" in told
    kept = committed()
    assert 12 <= kept < ROWS // 4, f"{kept} units after {time.monotonic() - start:.0f} s: {told}"
    with a_head(cpus=2) as (address, _):
        again = driver(written, out, address)
        told_again, _ = again.communicate(timeout=300)
    assert again.returncode == 0, told_again
    alone = Dataset.open(tilth.run(recipe(0), tmp_path / "alone")["more"])
    done = Dataset.open(tilth.run(recipe(0), out)["more"])
    assert plain(done.rows()) == plain(alone.rows())
    assert (done.counts["inputs"], done.counts["accepted"]) == (ROWS, 3 * ROWS)
    # what was committed under the first head was not made again
    made = {row["meta"]["pid"] for row in done.rows() if row["via"]}
    assert len(made) > 2
