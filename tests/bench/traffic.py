"""What a run asks of an object store: requests by kind, a model of so many for each unit, and counts beside it.

    python -m tests.bench.traffic [--rows 128]

counts what 1, 2 and 4 real Ray nodes send to moto's S3, each the same work, beside what the model says of that.
Kinds are those by which S3 limits a prefix: at least 3,500 PUT, COPY, POST and DELETE and 5,500 GET and HEAD a second.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

#: of each kind a second, for one prefix, as Amazon documents them
LIMITS = {"PUT": 3500, "GET": 5500}
#: by a worker for each unit: the order to halt is looked for as a file and as a directory; its rows' file is asked for
#: its size, read for where they lie and for them; the unit is written
UNIT = Counter(HEAD=2, LIST=1, GET=2, PUT=1)
#: by the driver for each unit of a pass over them all: its size and its content
LOOK = Counter(HEAD=1, GET=1)
#: bytes of a source's file that are read to find a unit's rows in it
FOOTER = 1 << 16
#: by each worker once: does it see what the driver wrote
WORKER = Counter(HEAD=1)
#: by the driver for a whole stage: the ledger opened, leftovers looked for, the manifest of the dataset
STAGE = Counter(HEAD=5, LIST=12, PUT=2)
#: units that one request removes
REMOVED = 1000


def requests(units: int, workers: int, segments: int, shards: int, passes: int = 1) -> Counter[str]:
    """Of each kind, of a stage over a finished dataset, none of whose files is longer than what one PUT takes."""
    found = Counter(STAGE)
    for each, times in ((UNIT, units), (LOOK, units * passes), (WORKER, workers)):
        found.update({kind: count * times for kind, count in each.items()})
    found.update(PUT=segments + shards, POST=math.ceil(units / REMOVED))
    return found


def limited(asked: Counter[str]) -> Counter[str]:
    """By the kinds of LIMITS."""
    kinds = {"HEAD": "GET", "LIST": "GET", "GET": "GET"}
    found: Counter[str] = Counter()
    for kind, count in asked.items():
        found[kinds.get(kind, "PUT")] += count
    return found


def counted(seen: list[Any]) -> Counter[str]:
    """Of each kind, what a proxy has seen."""
    return Counter("LIST" if asked.method == "GET" and "list-type" in asked.query else asked.method for asked in seen)


def measured(nodes: int, rows: int) -> tuple[Counter[str], Counter[str]]:
    """What so many nodes of one CPU ask of a store, and what the model says."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.cluster_utils import Cluster

    from tests.bench.scaling import UNIT_ROWS, Waits
    from tests.bench.units import dataset_at, quiet
    from tests.between import between
    from tests.object_stores import s3
    from tilth import cluster
    from tilth.data.chain import Chain, cut
    from tilth.data.dataset import Dataset
    from tilth.data.engine import run_units
    from tilth.data.finish import finish
    from tilth.data.ledger import Ledger
    from tilth.data.transform import Resources
    from tilth.storage import Store

    quiet()
    with between(s3) as (bucket, proxy), tempfile.TemporaryDirectory() as folder:
        machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(nodes):
            machines.add_node(num_cpus=1)
        machines.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = machines.address
        local = dataset_at(Path(folder), rows)
        source = Dataset(Store.at(f"{bucket}/{nodes}/source"), local.row_type, local.shards, (), local.counts)
        for shard in local.shards:
            source.store.write(shard.name, local.store.read(shard.name))
        with cluster.session(Store.at(folder)):
            cluster.ray_ready()
            proxy.seen.clear()
            out = Store.at(f"{bucket}/{nodes}/out")
            ledger = Ledger(out, "bench", cut(source, UNIT_ROWS))
            work = Chain(source.store, source.row_type, (Waits(seconds=0.01),))
            run_units(work, ledger, Resources(workers=nodes), "traffic")
            segments = len([name for name in out.list("ledger") if name.endswith(".jsonl")])
            proxy.seen.pop()
            done = finish(ledger, source.row_type)
        machines.shutdown()
    return counted(proxy.seen), requests(len(ledger.units), nodes, segments, len(done.shards))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args()
    if len(given.nodes) > 1:  # each a Ray of its own
        for nodes in given.nodes:
            again = ["--rows", str(given.rows), "--nodes", str(nodes)]
            subprocess.run([sys.executable, "-m", "tests.bench.traffic", *again], check=True)
        return
    found, said = measured(given.nodes[0], given.rows)
    kinds = sorted(found | said)
    print(f"{given.nodes[0]} nodes: " + ", ".join(f"{found[kind]} {kind} ({said[kind]})" for kind in kinds), flush=True)


if __name__ == "__main__":
    main()
