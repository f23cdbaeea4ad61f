"""Every YAML in the tree parses, every recipe holds, and the examples run."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import tilth
from tilth.data.dataset import Dataset

ROOT = Path(__file__).parents[1]
RECIPES = [path for path in sorted((ROOT / "examples").rglob("*.yaml")) if path.parent.name != "annotation"]


@pytest.fixture
def at_root() -> Iterator[None]:
    """Recipes name their data from the root of the checkout."""
    before = Path.cwd()
    os.chdir(ROOT)
    yield
    os.chdir(before)


def tracked(*patterns: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / line for line in done.stdout.splitlines()] or [p for g in patterns for p in ROOT.rglob(g)]


def test_every_yaml_parses() -> None:
    files = tracked("*.yaml", "*.yml")
    assert len(files) >= 4
    for file in files:
        assert all(document is not None for document in yaml.safe_load_all(file.read_text())), file


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_holds_and_survives_a_round_trip(path: Path, at_root: None, tmp_path: Path) -> None:
    recipe = tilth.load(path)
    again = tmp_path / "again.yaml"
    again.write_text(recipe.dump_yaml())
    assert tilth.load(again) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_data_of_every_recipe_is_there(path: Path, at_root: None, tmp_path: Path) -> None:
    """What needs no model runs as it is written, and no stage is left without rows."""
    recipe = tilth.load(path)
    names = [name for name in recipe.order() if recipe.stages[name].kind in ("data", "mix")]
    assert names
    if any(child.kind == "hf" for name in names for _, child in recipe.stages[name].children()):
        pytest.skip("its data lies on the hub")
    small = [f"stages.{name}.resources.workers=0" for name in names if hasattr(recipe.stages[name], "resources")]
    found = tilth.run(tilth.load(path, small).part(names), tmp_path)
    for name in names:
        assert Dataset.open(found[name]).splits(), f"{name} has no row"


def test_an_augmenter_of_ones_own(at_root: None, tmp_path: Path) -> None:
    here = ("stages.data.resources.workers=0", "stages.augment.resources.workers=0")
    done = Dataset.open(tilth.run("examples/typos.yaml", tmp_path, *here)["augment"])
    children = [row for row in done.rows() if row["parent"]]
    assert len(children) > 50
    parents = {row["id"]: row for row in done.rows()}
    for child in children:
        parent = parents[child["parent"]]
        assert child["text"] != parent["text"]
        assert sorted(child["text"].lower()) == sorted(parent["text"].lower()), "letters only change places"
        assert (child["label"], child["split"], child["via"]) == (parent["label"], "train", "typos")


@pytest.mark.timeout(1800)
@pytest.mark.long
def test_the_quickstart_small(at_root: None, ray_session: object, tmp_path: Path) -> None:
    """The whole demo with few rows and steps: real models, Ray Data, Ray Train, DeepSpeed, report."""
    steps = [{"kind": "eda"}, {"kind": "back_translation"}, {"kind": "similarity", "min_cosine": 0.6}]
    small = (
        "stages.data.sample.per_label=2",
        f"stages.augment.steps={yaml.safe_dump(steps, default_flow_style=True).strip()}",
        "stages.originals_only.optimisation.steps=3",
        "stages.with_augmentation.optimisation.steps=3",
        "stages.evaluate.bootstrap.samples=200",
        "stages.evaluate.resources.workers=1",
    )
    interrupt = signal.getsignal(signal.SIGINT)
    found = tilth.run("examples/quickstart.yaml", tmp_path, *small)
    assert signal.getsignal(signal.SIGINT) == interrupt, "Ctrl-C still stops what comes after a training"
    assert found["augment"].counts["inputs"] == 20
    assert found["augment"].metrics["added"] > 0
    assert found["with_augmentation"].metrics["steps"] == 3
    assert found["evaluate"].metrics["augmented/accuracy_low"] <= found["evaluate"].metrics["augmented/accuracy"]
    assert set(found["evaluate"].metrics) >= {"difference/accuracy", "difference/accuracy_p"}


@pytest.mark.long
def test_the_loop_without_abstraction_reads_what_a_run_leaves(at_root: None, tmp_path: Path) -> None:
    here = ("stages.data.resources.workers=0", "stages.augment.resources.workers=0", "stages.data.split.test=0.05")
    found = tilth.run("examples/typos.yaml", tmp_path, *here)
    spec = importlib.util.spec_from_file_location("loop", ROOT / "examples/loop.py")
    assert spec is not None
    assert spec.loader is not None
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)
    assert loop.main(found["augment"].store.local(), steps=25) > 0.3


def test_the_recipe_of_the_readme_is_the_same_in_yaml_and_in_python(at_root: None) -> None:
    text = (ROOT / "README.md").read_text()
    written = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    code = text.split("```python\n")[1].split("```")[0].partition("artifacts = ")[0]
    scope: dict[str, object] = {}
    exec(code, scope)
    assert tilth.load(written) == scope["recipe"]
