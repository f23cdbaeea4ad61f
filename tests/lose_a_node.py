"""Work on a cluster of real Ray nodes, one of which is killed with all that runs on it, on the way.

python tests/lose_a_node.py WHAT ROOT, where WHAT is a function below; prints what became of it as one line of JSON.
When the node goes is drawn anew each time; TILTH_LOSS_SEED, which is printed, draws the same again.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import psutil

import tilth
from namespaces import two_hosts
from processes import descendants, titled, until
from test_ppo import figures, prompts_at
from test_ppo import stage as ppo
from tilth import cluster
from tilth.data.dataset import Dataset
from tilth.storage import Store
from tiny import model_folder
from training import MINILM, at_step, dataset, questions, run_stage, stage_of, trace

ROWS = 240
#: of the questions that are learnt, epochs of eight steps
STEPS = 24
SEED = int(os.environ.get("TILTH_LOSS_SEED") or random.randrange(1_000_000))


def drawn(first: int, last: int) -> int:
    """The point at which the node goes: early enough that work is left, late enough that some is done."""
    point = random.Random(SEED).randint(first, last)
    print(f"TILTH_LOSS_SEED={SEED} draws {point} of {first} to {last}", flush=True)
    return point


@contextmanager
def nodes_of_one_machine(count: int, cpus: int = 1, dashboard: bool = False) -> Iterator[Callable[..., None]]:
    """A head that holds no work, and nodes of so many CPUs each; what takes one of them away."""
    from ray.cluster_utils import Cluster

    # a trial of Ray Tune takes a byte of memory, of which the head has one
    head = {"num_cpus": 0, "memory": 1, "include_dashboard": dashboard}
    machines = Cluster(initialize_head=True, head_node_args=head)
    nodes = [machines.add_node(num_cpus=cpus) for _ in range(count)]
    machines.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = machines.address

    def lose(*pids: int) -> None:
        """A node goes, as when its power is cut: one that runs one of the processes, if any are named."""
        above = {parent.pid for pid in pids for parent in psutil.Process(pid).parents()}
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        running = [node for node, raylet in zip(nodes, raylets, strict=True) if raylet in above]
        assert running or not pids, "all of them run on the head"
        machines.remove_node([*running, *nodes][0], allow_graceful=False)

    yield lose
    machines.shutdown()


@contextmanager
def hosts_with_a_wire() -> Iterator[Callable[..., None]]:
    """Two hosts of one CPU each; what cuts the wire between them."""
    with two_hosts() as (address, part):
        os.environ["RAY_ADDRESS"] = address
        yield part


def recipe(workers: int, *others: dict[str, Any]) -> dict[str, Any]:
    """Labelled rows augmented by a pool of workers, and by the steps that other pools apply."""
    rows = [{"text": f"where is card number {n}", "label": str(n % 3)} for n in range(ROWS)]
    step = {"kind": "faulty:Located", "seconds": 0.1, "variants": 2}
    pool = {"workers": workers}
    return {"name": "lost", "stages": {
        "data": {"kind": "data", "row": "labelled", "source": {"kind": "inline", "rows": rows}},
        "more": {"kind": "augment", "data": "@data", "steps": [step, *others], "unit_rows": 4, "resources": pool},
    }}  # fmt: skip


def augment(root: Path, lose: Callable[..., None], *others: dict[str, Any], workers: int = 2) -> dict[str, Any]:
    """Augment while a node is lost, and once more without any; both as they lie on storage."""

    least = drawn(12, 45)  # of 60

    def committed() -> bool:
        return len(list(root.glob("out/stages/more/*/units/*.parquet"))) >= least

    killer = threading.Thread(target=lambda: (until(committed, 120), lose()))
    killer.start()
    done = Dataset.open(tilth.run(recipe(workers, *others), root / "out")["more"])
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
    """The same where what one pool made goes on to another, whose worker needs a node of two CPUs for itself."""
    wide = {"workers": 1, "cpus": 2}
    return augment(root, lose, {"kind": "faulty:Located", "name": "again", "resources": wide}, workers=3)


def loses_where(title: str, begun: Callable[[], object], lose: Callable[..., None]) -> threading.Thread:
    """A thread that loses a node on which such a process runs, once it has begun."""

    def wait() -> None:
        found: list[int] = []
        until(lambda: begun() and found.extend(titled(descendants(os.getpid()), title)) is None and found, 300)
        lose(*found)

    return threading.Thread(target=wait)


def learner(root: Path, lose: Callable[..., None]) -> dict[str, Any]:
    """Learn from feedback while the node of the learner is lost, and once more where none is; both traces."""
    act = (root / "lost", drawn(1, 4), lambda progress: lose(progress["pid"]), lambda: True)
    return _ppo(root, threading.Thread(target=at_step, args=act))


def rollouts(root: Path, lose: Callable[..., None]) -> dict[str, Any]:
    """The same where the node of the generating actor is lost."""
    least = drawn(1, 4)

    def begun() -> bool:
        file = root / "lost/train/progress.json"
        return file.exists() and json.loads(file.read_text())["step"] >= least

    return _ppo(root, loses_where("ray::Mirror", begun, lose))


def _ppo(root: Path, killer: threading.Thread) -> dict[str, Any]:
    what = {"name": str(model_folder(root / "llama", "llama")), "lora": {"rank": 4}}
    traces = []
    for name, workers in (("lost", 1), ("alone", 0)):
        place = {"placement": "disaggregate", "actors": 1, "cpus": 1} if workers else {}
        prompts_at(root / name)
        if workers:
            killer.start()
        run_stage(root / name, ppo(what, scale={"workers": workers}, rollouts={"kind": "hf", "max_tokens": 6, **place}))
        traces.append([{**line, "moved_bytes": None} for line in figures(root / name)])
    killer.join()
    return {"same": traces[0] == traces[1], "steps": len(traces[0])}


def search(root: Path, lose: Callable[..., None]) -> dict[str, Any]:
    """Search on Ray Tune while a node is lost that runs a trial, and once more in one process where none is."""
    rows = [{"text": row["text"], "label": row["label"]} for row in questions(61)]
    stages = {
        "data": {
            "kind": "data", "row": "labelled", "source": {"kind": "inline", "rows": rows}, "split": {"validation": 0.2},
        },
        "sft": {
            "kind": "sft", "data": "@data", "max_length": 32, "model": {"name": MINILM, "lora": {"rank": 4}},
            "optimisation": {"global_batch": 8, "epochs": 4}, "checkpointing": {"every_steps": 3},
            "validation": {"split": "validation", "every_steps": 6}, "scale": {"workers": 1, "micro_batch": 4},
        },
        "search": {
            "kind": "search", "stage": "sft", "metric": "validation_loss", "mode": "min", "searcher": {"kind": "grid"},
            "space": {"optimisation.learning_rate": {"kind": "choice", "values": [1e-3, 1e-4, 1e-5]}},
            "runner": {"kind": "tune", "at_once": 2},
        },
    }  # fmt: skip

    least = drawn(2, 15)

    def begun() -> bool:
        files = root.glob("lost/stages/sft/*/progress.json")
        return any(json.loads(file.read_text())["step"] >= least for file in files)

    killer = loses_where("ray::ImplicitFunc", begun, lose)
    killer.start()
    found = [_trials(stages, root / "lost")]
    killer.join()
    stages["search"] |= {"runner": {"kind": "one_by_one"}}
    stages["sft"] |= {"scale": {"workers": 0, "micro_batch": 4}}
    found.append(_trials(stages, root / "alone"))
    return {"same": found[0] == found[1], "states": [state for state, _ in found[0]]}


def _trials(stages: dict[str, Any], out: Path) -> list[tuple[str, Any]]:
    detail = tilth.run({"name": "lost", "stages": stages}, out)["search"].detail["search"]
    return [(trial["state"], trial["scores"]) for trial in detail["trials"]]


def sft(root: Path, lose: Callable[..., None]) -> dict[str, Any]:
    """Fine-tune on one node while it is lost, and once more where none is; both traces."""

    def stage(workers: int) -> Any:
        scale = {"workers": workers, "micro_batch": 4}
        model = {"name": MINILM, "lora": {"rank": 4, "dropout": 0.1}}
        return stage_of("sft", model, {"epochs": 3}, checkpointing={"every_steps": 3, "keep": 2}, scale=scale)

    traces, point = [], drawn(1, 20)
    for name, workers in (("lost", 1), ("alone", 0)):
        dataset(root / name, questions(61))
        if workers:
            killer = threading.Thread(
                target=at_step, args=(root / name, point, lambda progress: lose(progress["pid"]), lambda: True)
            )
            killer.start()
        run_stage(root / name, stage(workers))
        traces.append(trace(root / name))
    killer.join()
    return {"same": traces[0] == traces[1], "steps": len(traces[0])}


WORK = {
    "augment": (augment, partial(nodes_of_one_machine, 2)),
    "pools": (pools, partial(nodes_of_one_machine, 3, cpus=2)),
    "partition": (augment, hosts_with_a_wire),
    "sft": (sft, partial(nodes_of_one_machine, 2)),
    "learner": (learner, partial(nodes_of_one_machine, 3)),
    "rollouts": (rollouts, partial(nodes_of_one_machine, 3)),
    # what a dead trial held is given back by one who asks the dashboard whether it lives
    "search": (search, partial(nodes_of_one_machine, 2, dashboard=True)),
}

if __name__ == "__main__":
    work, place = WORK[sys.argv[1]]
    root, lost = Path(sys.argv[2]), Event()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    with place() as lose, cluster.session(Store.at(root)):

        def once(*pids: int) -> None:
            lose(*pids)
            lost.set()

        found = work(root, once)
    print(json.dumps({**found, "lost": int(lost.is_set())}), flush=True)
