"""Every method learns: SmolLM2-135M on real questions of three datasets, by the loss of rows that it never saw."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tilth.data.schema import original
from training import SMOLLM, dataset, run_stage, stage_of

DATA = Path(os.environ.get("TILTH_SHARED", Path(__file__).parents[2] / "shared")) / "data"
FILES = ("banking77/test.csv", "gsm8k/test.jsonl", "pubmedqa/ori_pqal.json")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all((DATA / name).is_file() for name in FILES), reason="the folder of real data is absent"),
]
TRAIN, HELD_OUT, STEPS, BATCH = 32, 6, 16, 6
#: method: its settings, its learning rate, and by how much the loss of held-out rows falls below the base model's
METHODS: dict[str, tuple[dict[str, Any], float, float]] = {
    "full": ({}, 1e-4, 0.5),
    "freeze": ({"freeze": {"blocks": [0, 20], "embeddings": True}}, 3e-4, 0.5),
    "lora": ({"lora": {"rank": 8}}, 2e-3, 0.5),
    "lora (rsLoRA, DoRA)": ({"lora": {"rank": 8, "variant": "dora", "scaling": "rank_stabilized"}}, 1e-3, 0.5),
    "lora (PiSSA)": ({"lora": {"rank": 8, "init": "pissa"}}, 1e-3, 0.5),
    "ia3": ({"ia3": {}}, 2e-2, 0.5),
    "prefix_tuning": ({"prefix_tuning": {"length": 8}}, 2e-2, 0.5),
    "prompt_tuning": (
        {"prompt_tuning": {"length": 8, "text": "Answer the question briefly:"}},
        5e-2,
        0.5,
    ),
    "p_tuning": ({"p_tuning": {"length": 8}}, 1e-2, 0.5),
    "bottleneck (Houlsby)": ({"bottleneck": {"width": 16}}, 3e-3, 0.5),
    "bottleneck (Pfeiffer)": ({"bottleneck": {"width": 16, "placement": "pfeiffer"}}, 3e-3, 0.5),
}


def pairs() -> dict[str, list[tuple[str, str]]]:
    """Questions and answers, the shortest of each dataset first."""
    with (DATA / FILES[0]).open(encoding="utf-8", newline="") as handle:
        cards = [(row["text"], row["category"].replace("_", " ")) for row in csv.DictReader(handle)]
    lines = (DATA / FILES[1]).read_text(encoding="utf-8").splitlines()
    sums = [(row["question"], row["answer"].rpartition("#### ")[2]) for row in map(json.loads, lines)]
    papers = json.loads((DATA / FILES[2]).read_text(encoding="utf-8")).values()
    studies = [(row["QUESTION"], row["final_decision"]) for row in papers]
    found = {"banking77": cards, "gsm8k": sums, "pubmedqa": studies}
    return {name: sorted(items, key=lambda item: len(item[0]))[: TRAIN + HELD_OUT] for name, items in found.items()}


def rows() -> list[dict[str, Any]]:
    return [
        original(
            f"{name}{number:02d}",
            "train" if number < TRAIN else "validation",
            {"prompt": f"Question: {question}\nAnswer:", "completion": f" {answer}"},
        )
        for name, items in pairs().items()
        for number, (question, answer) in enumerate(items)
    ]


def loss(root: Path, method: dict[str, Any], rate: float, steps: int) -> float:
    """The loss of held-out rows after so many steps."""
    dataset(root, rows(), "completion")
    how = {"steps": steps, "global_batch": BATCH, "learning_rate": rate, "warmup": 0.0}
    stage = stage_of(
        "sft", {"name": SMOLLM, **method}, how, max_length=96, scale={"workers": 0, "micro_batch": BATCH},
        validation={"split": "validation", "every_steps": steps},
    )  # fmt: skip
    return float(run_stage(root, stage).metrics["validation_loss"])


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> float:
    return loss(tmp_path_factory.mktemp("base"), {}, 1e-12, 1)


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_from_real_questions(name: str, untrained: float, tmp_path: Path) -> None:
    method, rate, fall = METHODS[name]
    assert loss(tmp_path, method, rate, STEPS) < untrained - fall
