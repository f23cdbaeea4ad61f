"""Work on a cluster of real Ray nodes, one of which is killed with all that runs on it, on the way.

python tests/lose_a_node.py WHAT ROOT, where WHAT is `augment`, `pools` (augmented by two pools of workers) or `sft`;
prints what became of it as one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import tilth
from processes import until
from tilth import cluster
from tilth.data.dataset import Dataset
from tilth.storage import Store
from training import MINILM, at_step, dataset, questions, run_stage, stage_of, trace

ROWS = 240
#: of the questions that are learnt, epochs of eight steps
STEPS = 24


def started(count: int) -> tuple[Any, list[Any]]:
    """A head that holds no work, and nodes of one CPU each."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [found.add_node(num_cpus=1) for _ in range(count)]
    found.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = found.address
    return found, nodes


def recipe(workers: int, *others: dict[str, Any]) -> dict[str, Any]:
    """Labelled rows augmented by a pool of workers, and by the steps that other pools apply."""
    rows = [{"text": f"where is card number {n}", "label": str(n % 3)} for n in range(ROWS)]
    step = {"kind": "faulty:Located", "seconds": 0.1, "variants": 2}
    pool = {"workers": workers}
    return {"name": "lost", "stages": {
        "data": {"kind": "data", "row": "labelled", "source": {"kind": "inline", "rows": rows}},
        "more": {"kind": "augment", "data": "@data", "steps": [step, *others], "unit_rows": 4, "resources": pool},
    }}  # fmt: skip


def augment(root: Path, lose: Callable[..., None], *others: dict[str, Any]) -> dict[str, Any]:
    """Augment while a node is lost, and once more without any; both as they lie on storage."""

    def committed() -> bool:
        return len(list(root.glob("out/stages/more/*/units/*.parquet"))) >= 12

    killer = threading.Thread(target=lambda: (until(committed, 120), lose()))
    killer.start()
    done = Dataset.open(tilth.run(recipe(2, *others), root / "out")["more"])
    killer.join()
    alone = Dataset.open(tilth.run(recipe(0, *others), root / "alone")["more"])

    def plain(rows: Any) -> list[Any]:
        return [(row["id"], row["parent"], row["via"], row["text"], row["label"]) for row in rows]

    nodes = {row["meta"]["node"] for row in done.rows() if row["via"]}
    return {
        "same": plain(done.rows()) == plain(alone.rows()), "counts": done.counts, "nodes": len(nodes),
        "rejected": len(list(done.rejected_rows())),
    }  # fmt: skip


def pools(root: Path, lose: Callable[..., None]) -> dict[str, Any]:
    """The same where what one pool made goes on to another, of one worker."""
    return augment(root, lose, {"kind": "faulty:Located", "name": "again", "resources": {"workers": 1}})


def sft(root: Path, lose: Callable[..., None]) -> dict[str, Any]:
    """Fine-tune on one node while it is lost, and once more where none is; both traces."""

    def stage(workers: int) -> Any:
        scale = {"workers": workers, "micro_batch": 4}
        model = {"name": MINILM, "lora": {"rank": 4, "dropout": 0.1}}
        return stage_of("sft", model, {"epochs": 3}, checkpointing={"every_steps": 3, "keep": 2}, scale=scale)

    traces = []
    for name, workers in (("lost", 1), ("alone", 0)):
        dataset(root / name, questions(61))
        if workers:
            killer = threading.Thread(
                target=at_step, args=(root / name, 10, lambda progress: lose(progress["pid"]), lambda: True)
            )
            killer.start()
        run_stage(root / name, stage(workers))
        traces.append(trace(root / name))
    killer.join()
    return {"same": traces[0] == traces[1], "steps": len(traces[0])}


if __name__ == "__main__":
    what, root = sys.argv[1], Path(sys.argv[2])
    machines, nodes = started(3 if what == "pools" else 2)
    lost: list[str] = []

    def lose(pid: int | None = None) -> None:
        """A node goes, as when its power is cut: the one that runs the process, if one is named."""
        above = {process.pid for process in psutil.Process(pid).parents()} if pid else set()
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        node = next((node for node, raylet in zip(nodes, raylets, strict=True) if raylet in above), nodes[0])
        machines.remove_node(node, allow_graceful=False)
        lost.append(node.node_id)

    with cluster.session(Store.at(root)):
        found = {"augment": augment, "pools": pools, "sft": sft}[what](root, lose)
    print(json.dumps({**found, "lost": len(lost)}), flush=True)
    machines.shutdown()
