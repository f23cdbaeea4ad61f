"""Weak scaling of the data pipeline: 1, 2 and 4 real Ray nodes on this machine, the work of each node the same.

A row costs a wait, as on an engine or a server elsewhere: nodes on one machine share its cores, so that work which
computes would measure those. What is measured is thus what Ray, the ledger and the driver cost with more nodes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from tests.bench.paired import ROOT
from tests.bench.result import Options, Result
from tests.bench.units import dataset_at, marked, quiet, read_marks, steady
from tilth.data.chain import cut
from tilth.data.engine import run_units
from tilth.data.ledger import Ledger
from tilth.data.schema import Row
from tilth.data.transform import Inputs, Resources, RowsFunction, Transform
from tilth.storage import Store

SUMMARY = "rows/s of N nodes over N times that of one, the work of each node held constant"
NODES = (1, 2, 4)
UNIT_ROWS = 8
ROW_SECONDS = 0.1


class Waits(Transform):
    """Takes its time for each row, without computing."""

    seconds: float = Field(ROW_SECONDS, ge=0, description="For each row.")

    def load(self, inputs: Inputs, fitted: Any) -> RowsFunction:
        def wait(rows: list[Row]) -> list[Row]:
            time.sleep(self.seconds * len(rows))
            return rows

        return wait


def missing(options: Options) -> str | None:
    return None


def measure(options: Options) -> Iterator[Result]:
    rows = options.size(160, 1_200)
    found: dict[int, list[dict[str, float]]] = {nodes: [] for nodes in NODES}
    for number in range(options.rounds):
        for nodes in NODES if number % 2 == 0 else NODES[::-1]:
            found[nodes].append(_measured(nodes, rows))
    for nodes in NODES:
        for figure, what in (("rate", "steady"), ("whole", "start-up included")):
            ratios = [a[figure] / (nodes * one[figure]) for a, one in zip(found[nodes], found[1], strict=True)]
            rate = median(item[figure] for item in found[nodes])
            note = f"{nodes * rows} rows, {rate:.4g} rows/s; the nodes alone could {nodes / ROW_SECONDS:g}"
            yield Result(f"scaling: {nodes} nodes, {what}", median(ratios), options.rounds, note=note)


def _measured(nodes: int, rows: int) -> dict[str, float]:
    command = [sys.executable, "-m", __spec__.name, str(nodes), str(rows)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run(nodes: int, rows: int) -> dict[str, float]:
    """Rows a second of a cluster of so many nodes of one CPU, a head without work beside them."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.cluster_utils import Cluster

    from tilth import cluster

    quiet()
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        machines.add_node(num_cpus=1)
    machines.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = machines.address
    with tempfile.TemporaryDirectory() as folder, cluster.session(Store.at(folder)):
        cluster.ray_ready()
        source = dataset_at(Path(folder) / "source", nodes * rows)
        marks = Path(folder) / "marks.jsonl"
        ledger = Ledger(Store.at(folder).sub("out"), "bench", cut(source, UNIT_ROWS))
        start = time.time()
        run_units(marked(source, marks, Waits()), ledger, Resources(workers=nodes), "scaling")
        whole = nodes * rows / (time.time() - start)
        figures = {**steady(read_marks(marks)), "whole": whole}
    machines.shutdown()
    return figures


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))
