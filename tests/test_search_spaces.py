"""What a search may vary beside adapters: how data is augmented and mixed, and which layers are frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from test_search import trials
from tilth.data.dataset import Dataset
from tilth.errors import RecipeError
from tilth.recipe import load
from tilth.runs import Run
from tilth.storage import Store
from tiny import model_folder

ROWS = [{"text": f"where is my {word} number {n}", "label": word} for n in range(6) for word in ("card", "rate")]
SOURCE = {"kind": "inline", "rows": ROWS}


def choice(*values: Any) -> dict[str, Any]:
    return {"kind": "choice", "values": list(values)}


def eda(swaps: float) -> dict[str, Any]:
    """An augmentation that makes one row of each, by swaps alone."""
    step = {"kind": "eda", "variants": 1, "synonyms": 0.0, "insertions": 0.0, "deletions": 0.0, "swaps": swaps}
    return {"kind": "augment", "data": "@data", "resources": {"workers": 0}, "steps": [step]}


def augmented(space: dict[str, Any]) -> Any:
    """Two augmentations of the same rows, mixed, and a hill that is searched on what comes of that."""
    stages = {
        "data": {"kind": "data", "row": "labelled", "source": SOURCE, "split": {}},
        "few": eda(0.1),
        "many": eda(0.5),
        "mix": {"kind": "mix", "data": {"few": "@few", "many": "@many"}, "resources": {"workers": 0}},
        "hill": {"kind": "searched:Hill", "data": "@mix"},
        "search": {"kind": "search", "stage": "hill", "metric": "hill/height", "searcher": {"kind": "grid"},
                   "space": space},
    }  # fmt: skip
    return load({"name": "mixed", "stages": stages})


def versions(root: Path) -> dict[str, int]:
    """How many results of each stage there are."""
    return {name: len(list(root.glob(f"stages/{name}/*"))) for name in ("data", "few", "many", "mix", "hill")}


def test_a_searched_augmentation_and_mixture_run_again_alone_with_what_they_reach(tmp_path: Path) -> None:
    mixture = {"stages.mix.weights": choice({"few": 1.0, "many": 0.5}, {"few": 0.25, "many": 1.0})}
    space = {"stages.few.steps.0.swaps": choice(0.1, 0.3), **mixture}
    artifact = Run(tmp_path).execute(augmented(space))["search"]
    assert [trial["state"] for trial in trials(artifact)] == ["complete"] * 4
    assert versions(tmp_path) == {"data": 1, "few": 2, "many": 1, "mix": 5, "hill": 5}, "one mixture is as written"
    shares = set()
    for folder in tmp_path.glob("stages/mix/*"):
        tasks = [row["task"] for row in Dataset.open(Store.at(folder)).rows() if row["reason"] is None]
        shares.add((tasks.count("few"), tasks.count("many")))
    assert shares == {(24, 24), (24, 12), (6, 24)}
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("stages/*/*/artifact.json")}
    more = space | {"stages.few.steps.0.swaps": choice(0.1, 0.3, 0.4)}
    Run(tmp_path).execute(augmented(more))
    assert versions(tmp_path) == {"data": 1, "few": 3, "many": 1, "mix": 7, "hill": 7}
    assert all(file.stat().st_mtime_ns == when for file, when in before.items()), "nothing was made twice"


def test_which_rows_a_stage_learns_from_is_searched(tmp_path: Path) -> None:
    """A stage that only a value names is part of the trials with that value, and of no others."""
    space = {"data": choice("@few", "@many"), "stages.many.steps.0.swaps": choice(0.5, 0.6)}
    data = augmented(space).model_dump()
    data["stages"]["hill"]["data"] = "@few"
    artifact = Run(tmp_path).execute(load(data))["search"]
    assert [(trial["state"], trial["error"]) for trial in trials(artifact)] == [("complete", None)] * 4
    assert {name: versions(tmp_path)[name] for name in ("few", "many", "hill")} == {"few": 1, "many": 2, "hill": 3}
    assert [trial["values"]["data"] for trial in trials(artifact)] == ["@few", "@few", "@many", "@many"]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"stages.few.data": choice("@data", "@mix")}, r"few\.data: @mix does not fit: .*in a circle"),
        ({"stages.mix.data.few": choice("@few", "@hill")}, r"mix\.data\.few: @hill does not fit: .*needs a dataset"),
        ({"stages.few.steps.0.swaps": choice(0.1, 1.5)}, r"steps\.0\.swaps: 1\.5 does not fit"),
        ({"stages.few.steps.0.swap": choice(0.1)}, r"steps\.0\.swap: 0\.1 does not fit: unknown field"),
        ({"stages.few.steps.3.swaps": choice(0.1)}, r"steps\.3\.swaps: 0\.1 does not fit: has items 0 to 0, not '3'"),
        (
            {"stages.few.steps": choice([{"kind": "near_duplicates"}]), "stages.few.steps.0.swaps": choice(0.1)},
            r"steps\.0\.swaps: 0\.1 does not fit where stages\.few\.steps is .*near_duplicates.*: unknown field",
        ),
        ({"stages.mix.weights": choice({"most": 1.0})}, "no task is called 'most'"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused_before_anything_starts(space: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        augmented(space)


def frozen(model: str, space: dict[str, Any]) -> Any:
    stages = {
        "data": {"kind": "data", "row": "labelled", "source": SOURCE, "split": {}},
        "sft": {
            "kind": "sft", "data": "@data", "max_length": 16, "model": {"name": model}, "scale": {"workers": 0},
            "optimisation": {"steps": 2, "global_batch": 4},
        },
        "search": {
            "kind": "search", "stage": "sft", "metric": "train_loss", "mode": "min", "searcher": {"kind": "grid"},
            "space": space,
        },
    }  # fmt: skip
    return load({"name": "frozen", "stages": stages})


@pytest.mark.long
def test_how_many_layers_are_frozen_is_searched(tmp_path: Path) -> None:
    space = {"model.freeze": choice({"blocks": [0, 1]}, {"blocks": [0, 2], "embeddings": True})}
    model = str(model_folder(tmp_path / "llama", "llama"))
    done = Run(tmp_path / "run").execute(frozen(model, space))
    assert [trial["state"] for trial in trials(done["search"])] == ["complete"] * 2
    learnt = {}
    for folder in (tmp_path / "run/stages/sft").iterdir():
        detail = Store.at(folder).read_json("artifact.json")["detail"]
        learnt[folder] = detail["parameters"]["trainable"]
    assert len(set(learnt.values())) == 3, "all, without a block, and without two and the embeddings"


@pytest.mark.parametrize(
    ("freeze", "said"),
    [
        ({"blocks": [0, "two"]}, r"model\.freeze: .*does not fit"),
        ({"embeddings": False}, "freezes nothing"),
        ({"names": ["layers.("]}, "must be a regular expression"),
    ],
)
def test_layers_that_cannot_be_frozen_are_refused_before_anything_starts(freeze: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        frozen("org/model", {"model.freeze": choice({"blocks": [0, 1]}, freeze)})
