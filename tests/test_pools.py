"""Steps with workers of their own: one stream through several pools, the same rows as in one process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import tilth
from faulty import Deadly, Located, Numbered, noted
from helpers import contents, labelled, write_dataset
from test_ledger import augment
from tilth import room
from tilth.augment.base import Augmenter
from tilth.augment.gate import Gate
from tilth.augment.paraphrase import Paraphrase
from tilth.augment.similarity import Similarity
from tilth.augment.stage import Augment
from tilth.config import digest, identity
from tilth.data import pools
from tilth.data.chain import Chain
from tilth.data.dataset import Dataset
from tilth.data.pools import shared
from tilth.data.schema import NEW, Row, added
from tilth.data.transform import Inputs, Resources, Transform
from tilth.errors import ClusterError, RecipeError
from tilth.generate.hf import HuggingFace
from tilth.nodes import Nodes
from tilth.placing import Node
from tilth.storage import Store
from tilth.weights import Weights

ONE = Resources(workers=1)


class Picky(Transform):
    """Drops made rows whose parent it does not see; raises on those named."""

    fail: tuple[str, ...] = ()

    def load(self, inputs: Inputs, fitted: Any) -> Any:
        def judge(rows: list[Row]) -> list[Row]:
            there = {row["id"] for row in rows}
            for row in rows:
                if row["id"] in self.fail:
                    raise ValueError(f"cannot judge {row['id']}")
                if row.get(NEW) and row["parent"] not in {None, *there}:
                    row["reason"] = "orphan: its parent is not here"
            return rows

        return judge


class Short(Transform):
    """Drops every made row."""

    def load(self, inputs: Inputs, fitted: Any) -> Any:
        return lambda rows: [{**row, "reason": "short: it is"} if row.get(NEW) else row for row in rows]


class Counting(Transform):
    """Notes each call in a file, or takes its time and says how many were noted."""

    file: str
    slow: bool = False

    def load(self, inputs: Inputs, fitted: Any) -> Any:
        def count(rows: list[Row]) -> list[Row]:
            if not self.slow:
                noted(self.file)
                return rows
            time.sleep(0.1)
            begun = len(Path(self.file).read_text().splitlines())
            meta = {"begun": begun, "at": time.time()}
            return [{**row, "meta": meta} for row in rows]

        return count


@pytest.fixture
def source(tmp_path: Path) -> Dataset:
    return write_dataset(Store.at(tmp_path / "source"), labelled(100))


def test_a_made_row_on_which_a_later_step_raises_is_quarantined_alone(source: Dataset, tmp_path: Path) -> None:
    bad = ("r0020/numbered.0", "r0090/numbered.1")
    done = augment(Store.at(tmp_path / "out"), source, Numbered(variants=2), Picky(fail=bad), Numbered(name="last"))
    assert {row["id"]: row["reason"] for row in done.rejected_rows()} == {
        name: f"quarantined/ValueError: cannot judge {name}" for name in bad
    }
    assert done.counts["accepted"] == 100 + 198 + 100


def test_an_original_on_which_a_step_raises_takes_those_along_that_are_judged_beside_it(
    source: Dataset, tmp_path: Path
) -> None:
    done = augment(Store.at(tmp_path / "out"), source, Numbered(), Picky(fail=("r0007",)), Numbered(name="last"))
    reasons = {row["id"]: row["reason"] for row in done.rejected_rows()}
    assert reasons == dict.fromkeys(("r0007", "r0007/numbered.0"), "quarantined/ValueError: cannot judge r0007")
    assert done.counts["accepted"] == 99 * 3


def test_where_a_step_compares_with_no_parent_the_sound_rows_stay(source: Dataset, tmp_path: Path) -> None:
    """An augmenter that raises on an original leaves what was made of it before."""
    bad = Deadly(fail=("r0007", "r0042"), name="last")
    done = augment(Store.at(tmp_path / "out"), source, Numbered(variants=3), bad, unit_rows=1)
    assert {row["id"]: row["reason"] for row in done.rejected_rows()} == {
        name: f"quarantined/ValueError: cannot read {name}" for name in ("r0007", "r0042")
    }
    assert done.counts["accepted"] == 98 + 300 + 98


def test_a_row_that_has_a_reason_keeps_it(source: Dataset, tmp_path: Path) -> None:
    steps = Numbered(), Short(), Picky(fail=("r0003",))
    done = augment(Store.at(tmp_path / "out"), source, *steps)
    reasons = {row["id"]: row["reason"] for row in done.rejected_rows()}
    assert reasons["r0003/numbered.0"] == "short: it is"
    assert reasons["r0003"] == "quarantined/ValueError: cannot judge r0003"


def test_a_gate_judges_children_though_their_parent_raises(source: Dataset, tmp_path: Path) -> None:
    rows = [*labelled(8), *[added(labelled(8)[3], "eda", n, 1, "eda", text=f"made {n}") for n in range(2)]]
    made = write_dataset(Store.at(tmp_path / "made"), [{key: row[key] for key in labelled(1)[0]} for row in rows])
    (alone,) = Gate(data="@x", steps=(Picky(fail=("r0003",)),)).working
    done = augment(Store.at(tmp_path / "out"), made, alone)
    assert [row["id"] for row in done.rejected_rows()] == ["r0003"]


def test_steps_are_cut_into_legs_where_workers_change() -> None:
    def legs(*own: Resources | None) -> list[tuple[Resources | None, int]]:
        steps = tuple(Numbered(name=str(n), resources=item) for n, item in enumerate(own))
        found = Chain(Store.at("nowhere"), "text", steps).legs
        return [(leg.resources, len(getattr(leg, "stretch", leg).steps)) for leg in found]

    assert legs() == [(None, 0)]
    assert legs(None, None) == [(None, 2)]
    assert legs(None, ONE, ONE, None) == [(None, 1), (ONE, 2), (None, 1)]
    assert legs(ONE) == [(ONE, 1)]


def test_who_computes_a_step_is_no_part_of_what_it_is() -> None:
    assert digest(identity(Numbered(resources=ONE), str)) == digest(identity(Numbered(), str))


def test_a_pool_in_this_process_is_refused() -> None:
    source = {"kind": "inline", "rows": [{"text": "a", "label": "b"}]}
    recipe = {"name": "x", "stages": {
        "rows": {"kind": "data", "row": "labelled", "source": source},
        "more": {"kind": "augment", "data": "@rows", "steps": [{"kind": "eda", "resources": {"workers": 0}}]},
    }}  # fmt: skip
    with pytest.raises(RecipeError, match=r"(?s)more.steps.0.*workers of its own are processes: give 1 or more"):
        tilth.load(recipe)


def test_models_of_steps_with_workers_of_their_own_are_counted_in_those() -> None:
    def memory(own: Resources | None, size: int | None = 1000) -> float | None:
        steps = (Similarity(), Numbered(), Paraphrase(generator=HuggingFace(model="other"), resources=own))
        stage = Augment(data="@rows", steps=steps, resources=Resources(workers=2))
        other = None if size is None else Weights(size, 2 * size)
        return stage.memory(lambda model: other if model == "other" else Weights(10, 40))

    assert memory(None) == 2 * (40 + 4000)
    assert memory(Resources(workers=3)) == 2 * 40 + 3 * 4000
    assert memory(Resources(workers=3, gpus=1)) == 2 * 40 + 3 * 2000
    assert memory(Resources(gpus=1)) is None  # as many as the cluster has GPUs
    assert memory(ONE, None) is None
    alone = Augment(data="@rows", steps=(Similarity(resources=Resources(workers=8)),), resources=Resources(workers=0))
    assert alone.memory(lambda model: Weights(10, 40)) == 40  # all in this process


def node(cpus: float, gpus: float = 0, **labels: str) -> Node:
    return Node({"CPU": cpus, "GPU": gpus}, labels)


AUTO = Resources()
GPU = Resources(gpus=1)
GPUS = Resources(workers=4, gpus=1)
WIDE = Resources(cpus=4)
SPOT = Resources(nodes=Nodes(labels={"pool": "spot"}))


@pytest.mark.parametrize(
    ("asked", "nodes", "startable", "most", "found"),
    [
        ([AUTO, AUTO], [node(8)], [], 99, [4, 4]),
        ([AUTO, AUTO], [node(8)], [], 3, [3, 3]),  # no more than there are units
        ([AUTO, GPU], [node(8, 2)], [], 99, [6, 2]),  # each worker with a GPU takes a CPU too
        ([AUTO, GPU], [node(2, 2), node(8)], [], 99, [8, 2]),  # the others go where no GPU is
        ([AUTO, GPUS], [node(16, 8)], [], 99, [12, 4]),
        ([AUTO, GPUS], [node(4, 2)], [], 99, [2, 2]),  # with fewer than asked
        ([Resources(workers=9), ONE], [node(4)], [], 99, [3, 1]),  # one of each before a second of any
        ([ONE, WIDE], [node(4), node(1)], [], 99, [1, 1]),  # the large one first, or it has no place
        ([AUTO, WIDE], [node(3), node(3)], [], 99, [6, 0]),  # no worker spans two nodes
        ([AUTO, SPOT], [node(4), node(2, pool="spot")], [], 99, [4, 2]),
        ([ONE, SPOT], [node(1, pool="spot"), node(1)], [], 99, [1, 1]),  # who may be anywhere goes elsewhere
        ([AUTO, GPUS], [node(4)], [Node({"CPU": 2.0, "GPU": 2.0})], 99, [4, 2]),  # the autoscaler may start it
        ([AUTO, SPOT], [node(4)], [Node({"CPU": 8.0})], 99, [11, 1]),  # of its labels nothing is known
        ([AUTO, GPU], [node(2)], [Node({"CPU": 4.0, "GPU": 2.0})] * 2, 99, [6, 4]),  # at rest: all that it may grow to
        ([Resources(workers=2, gpus=0.7), Resources(gpus=0.6)], [node(8, 2)], [], 99, [1, 1]),  # a share is of one GPU
    ],
)
def test_a_cluster_is_shared_out_so_that_no_pool_is_without_a_worker(
    asked: list[Resources], nodes: list[Node], startable: list[Node], most: int, found: list[int]
) -> None:
    fresh = [Node(dict(item.free), item.labels) for item in nodes]
    placed = shared(asked, fresh, [Node(dict(item.free)) for item in startable], most)
    assert [len(nodes) for nodes in placed] == found


def test_pools_that_cannot_run_beside_one_another_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [{"Resources": {"CPU": 2.0}, "Labels": {}, "NodeID": "a", "Alive": True}]
    monkeypatch.setattr(room, "alive", lambda labels: there)
    monkeypatch.setattr(room, "startable", list)
    monkeypatch.setattr(room, "secretive", lambda: False)
    pools.refuse_unplaceable([ONE, ONE], 0)
    with pytest.raises(ClusterError, match=r"2 pools .* one worker of each \(CPU 2; CPU 1\): none is left for CPU 1;"):
        pools.refuse_unplaceable([Resources(cpus=2), ONE], 0)


def test_rows_stream_through_two_pools_and_are_the_same(ray_session: object, source: Dataset, tmp_path: Path) -> None:
    def steps(own: Resources | None) -> tuple[Augmenter | Transform, ...]:
        located = Located(name="second", seconds=0.01, resources=own)
        return Located(name="first", seconds=0.01), Picky(fail=("r0020/first.0",)), located

    done = augment(Store.at(tmp_path / "pools"), source, *steps(ONE), resources=ONE, unit_rows=8)
    pids: dict[str, set[int]] = {name: set() for name in ("first", "second")}
    for row in done.rows():
        if row["via"]:
            pids[row["via"]].add(row["meta"]["pid"])
    assert [len(found) for found in pids.values()] == [1, 1]
    assert not pids["first"] & pids["second"]
    whole = augment(Store.at(tmp_path / "whole"), source, *steps(ONE), unit_rows=8)

    def said(dataset: Dataset) -> list[Any]:
        return [
            (row["id"], row["parent"], row["text"], row["reason"])
            for row in (*dataset.rows(), *dataset.rejected_rows())
        ]

    assert said(done) == said(whole)
    assert [row["id"] for row in done.rejected_rows()] == ["r0020/first.0"]


def test_gates_judge_on_their_own_workers_what_a_model_makes(ray_session: object, tmp_path: Path) -> None:
    def recipe(workers: int) -> dict[str, Any]:
        step = {"kind": "test_pools:Picky", "fail": ["r0003/grid.0"], "resources": {"workers": 1}}
        documents = [{"text": f"The card number {n} was blocked on a Monday."} for n in range(24)]
        return {"name": "pooled", "stages": {
            "documents": {"kind": "data", "row": "text", "source": {"kind": "inline", "rows": documents}},
            "made": {
                "kind": "generate", "data": "@documents", "method": {"kind": "instruction_back_translation"},
                "generator": {"kind": "echo"}, "steps": [step], "unit_rows": 4, "max_quarantined": 1,
                "resources": {"workers": workers},
            },
        }}  # fmt: skip

    for name, workers in (("pools", 1), ("whole", 0)):
        tilth.run(recipe(workers), tmp_path / name)
    found = [contents(next((tmp_path / name / "stages/made").iterdir())) for name in ("pools", "whole")]
    assert found[0] == found[1]


def test_a_fast_pool_runs_little_ahead_of_a_slow_one(ray_session: object, source: Dataset, tmp_path: Path) -> None:
    """Or a budget would be spent before anything is committed."""
    file = str(tmp_path / "begun")
    steps = Counting(file=file), Counting(file=file, slow=True, resources=ONE)
    done = augment(Store.at(tmp_path / "out"), source, *steps, resources=ONE, unit_rows=2)
    seen = sorted({(row["meta"]["at"], row["meta"]["begun"]) for row in done.rows()})
    assert len(seen) == 50
    assert max(begun - number for number, (_, begun) in enumerate(seen)) <= 12


@pytest.mark.long
def test_a_row_that_kills_a_later_pools_worker_is_found(ray_session: object, source: Dataset, tmp_path: Path) -> None:
    deadly = Deadly(kill=("r0042",), resources=ONE)
    done = augment(Store.at(tmp_path / "out"), source, Numbered(), deadly, resources=ONE, unit_rows=10)
    assert [row["id"] for row in done.rejected_rows()] == ["r0042"]
    assert done.counts["accepted"] == 99 * 3
