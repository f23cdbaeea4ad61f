"""Which nodes a stage's workers may run on: what is asked of Ray, and that it changes no result's identity."""

from __future__ import annotations

import pytest

from tilth.config import identity
from tilth.data.transform import Resources
from tilth.errors import RecipeError
from tilth.nodes import Nodes
from tilth.recipe import load
from tilth.train.config import Scale


def recipe(**nodes):
    rows = [{"text": f"row {n}", "label": "a"} for n in range(4)]
    source = {"kind": "inline", "rows": rows}
    return {"name": "x", "stages": {
        "data": {"kind": "data", "row": "labelled", "source": source, "resources": {"nodes": nodes}},
    }}  # fmt: skip


def test_a_worker_asks_for_its_labels_and_memory_and_for_nothing_where_nothing_is_said():
    asked = Nodes(accelerator="A100-80G", spot=False, labels={"team/pool": "blue"}, memory_gib=1.5)
    assert asked.options(2.0, 0.5) == {
        "num_cpus": 2.0, "num_gpus": 0.5, "memory": 1536 * 2**20,
        "label_selector": {
            "team/pool": "blue", "ray.io/accelerator-type": "A100-80G", "ray.io/market-type": "on-demand",
        },
    }  # fmt: skip
    assert asked.each(2.0, 0.5) == {"CPU": 2.0, "GPU": 0.5, "memory": 1.5 * 2**30}
    assert Nodes().options(1.0, 0.0) == {"num_cpus": 1.0, "num_gpus": 0.0}


def test_where_a_stage_runs_is_no_part_of_what_it_computes():
    here, there = Resources(), Resources(nodes=Nodes(spot=True, memory_gib=8.0))
    assert identity(here, str) == identity(there, str)
    assert Scale(nodes=Nodes(accelerator="H100")).nodes.selector == {"ray.io/accelerator-type": "H100"}
    assert there.count({"CPU": 6.0}) == 6


@pytest.mark.parametrize(
    ("nodes", "where", "what"),
    [
        ({"accelerator": "!in(H100)"}, "accelerator", "match"),
        ({"labels": {"ray.io/market-type": "spot"}}, "labels.ray.io/market-type", "set spot"),
        ({"memory_gib": 0.0}, "memory_gib", "greater than 0"),
    ],
)
def test_what_no_node_can_be_is_refused(nodes, where, what):
    with pytest.raises(RecipeError) as caught:
        load(recipe(**nodes))
    (problem,) = caught.value.problems
    assert problem.where == f"stages.data.resources.nodes.{where}"
    assert what in str(problem)
