"""From people's answers to models that learnt from them: a campaign, its feedback, a policy and a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tilth
from campaign import Campaign
from tilth.data.dataset import Dataset
from tilth.data.loading import load_trained
from tilth.runs import Artifact
from tilth.train import trace
from tiny import model_folder

TRAINING = {
    "data": "@feedback", "max_length": 64, "validation": "validation", "scale": {"workers": 0, "micro_batch": 4},
    "optimisation": {"epochs": 2, "global_batch": 4, "learning_rate": 0.01},
}  # fmt: skip
#: rows whose answers people find equal
TIES = {"q2", "q7"}


def write_rows(path: Path) -> Path:
    """Twelve prompts with the answers of two models; the last four are held out."""
    lines = [
        {
            "id": f"q{n}", "root": f"root{n}", "split": "train" if n < 8 else "validation", "prompt": f"Question {n}?",
            "answers": {"red": f"Red says {n}.", "blue": f"Blue says {n}."},
        }
        for n in range(12)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def number(text: str) -> int:
    """The row that a page, or an answer, is about."""
    return int(text.partition("Question ")[2].partition("?")[0])


def learnt(root: Path, store: str, **reward: Any) -> dict[str, Artifact]:
    """The artifacts of a run from answers to a policy and a reward model."""
    base = {"name": str(model_folder(root / "llama", "llama"))}
    stages = {
        "feedback": {"kind": "feedback", "answers": store},
        "policy": {"kind": "dpo", "model": base, **TRAINING},
        "judge": {"kind": "reward", "model": base, **TRAINING, **reward},
    }
    return tilth.run({"name": "people", "stages": stages}, root / "run")


def seen(artifact: Artifact) -> set[str]:
    """The rows of all steps of a training."""
    return {row for line in trace.read(artifact.store) for row in line["rows"]}


def same_rows(found: dict[str, Artifact], wanted: dict[str, tuple[str, str]]) -> None:
    """Both models learnt from exactly the pairs (better, worse) of `wanted`, by the row that was judged."""
    rows = {row["id"]: row for row in Dataset.open(found["feedback"]).rows()}
    assert {row["root"]: (row["chosen"], row["rejected"]) for row in rows.values()} == wanted
    training = {name for name, row in rows.items() if row["split"] == "train"}
    for name in ("policy", "judge"):
        assert seen(found[name]) == training
        assert found[name].counts["rows"] == len(training)
        assert found[name].metrics["validation_loss"] > 0
    loaded = {name: load_trained(found[name].store.fetch("model"), device="cpu") for name in ("policy", "judge")}
    assert {name: item.objective for name, item in loaded.items()} == {"policy": "language_model", "judge": "reward"}


@pytest.mark.long
def test_what_people_prefer_is_what_a_policy_and_a_reward_model_learn(tmp_path: Path) -> None:
    done = Campaign(write_rows(tmp_path / "items.jsonl"), overlap=2)
    manager = done.manager()
    for name in ("Ann", "Ben"):
        person = done.annotator(name, manager)
        while "Which answer is better?" in (page := person.get("/work").text):
            row = number(page)
            person.prefer("tie" if f"q{row}" in TIES else "blue" if row % 3 == 0 else "red")
    found = learnt(tmp_path, str(tmp_path / "items.db"))
    said = {n: (f"Red says {n}.", f"Blue says {n}.") for n in range(12) if f"q{n}" not in TIES}
    same_rows(found, {f"root{n}": pair[::-1] if n % 3 == 0 else pair for n, pair in said.items()})
    assert found["feedback"].counts["filtered"] == len(TIES)


def test_marks_are_learnt_from_by_as_much_as_they_differ(tmp_path: Path) -> None:
    criteria = [{"name": "quality", "question": "How good is the answer?"}]
    done = Campaign(write_rows(tmp_path / "items.jsonl"), form={"kind": "direct", "criteria": criteria}, overlap=1)
    person = done.annotator("Ann")
    while "The answer" in (page := person.get("/work").text):
        person.answer(quality=str(90 - number(page) if "Red says" in page else 20 + number(page)))
    found = learnt(tmp_path, str(tmp_path / "items.db"), margin="meta.margin")
    same_rows(found, {f"root{n}": (f"Red says {n}.", f"Blue says {n}.") for n in range(12)})
    margins = [row["meta"]["margin"] for row in Dataset.open(found["feedback"]).rows()]
    assert len(set(margins)) == 12, "each pair has a margin of its own"
