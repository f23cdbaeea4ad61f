"""What a person waits for first: `import tilth` and `tilth check` load nothing heavy, and layers point one way."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "transformers", "vllm", "deepspeed", "pyarrow", "datasets", "trl", "peft", "numpy", "sklearn")
CHECK_CALLS = 330_000
RECIPE = """\
name: everyday
stages:
  data:
    kind: data
    row: labelled
    source: {{kind: csv, path: "{folder}/rows.csv", columns: {{label: category}}}}
    split: {{test: 0.1}}
  augment:
    kind: augment
    data: "@data"
    steps:
      - {{kind: back_translation}}
      - {{kind: contextual, proposer: {{kind: masked_lm, model: org/bert}}}}
      - {{kind: eda}}
      - {{kind: length}}
      - {{kind: language}}
      - {{kind: similarity}}
      - {{kind: label}}
      - {{kind: near_duplicates}}
"""
# from the bottom up: what stands in one row may import its own row and those above it in this table
LAYERS = (
    ("errors", "kinds"),
    ("config", "yaml12", "problems", "sound", "changes"),
    (
        "paths",
        "recipe",
        "overrides",
        "runs",
        "trials",
        "disk",
        "storage",
        "lock",
        "meanwhile",
        "ui",
        "cluster",
        "room",
        "spilling",
        "nodes",
        "placing",
        "orphans",
        "content",
        "models",
        "hub",
        "carriers",
        "packages",
    ),
    ("weights",),
    ("data",),
    ("generate",),
    ("augment", "train", "evaluate", "search"),
    ("annotate",),
    ("report", "planning", "jobs", "doctor"),
    ("cli", "__main__", "__init__"),
)
SIBLINGS = set(LAYERS[6])


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "rows.csv").write_text("text,category\nwhere is my card,card_arrival\n", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    return path


def python(*arguments, **environment):
    """What the interpreter prints, given these arguments."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = "import sys; print([name for name in {heavy!r} if name in sys.modules])"


def test_import_loads_nothing_heavy():
    code = "import tilth; tilth.Recipe, tilth.Run, tilth.load, tilth.StageError;" + LOADED.format(heavy=HEAVY)
    assert python("-c", code) == "[]\n"


def test_check_loads_nothing_heavy(recipe):
    code = f"from tilth.cli import main; assert main(['check', {str(recipe)!r}]) == 0;" + LOADED.format(heavy=HEAVY)
    assert python("-c", code) == "[]\n"


@pytest.mark.parametrize(
    "family",
    [
        "stage",
        "source",
        "transform",
        "translator",
        "proposer",
        "peft",
        "generator",
        "method",
        "judge",
        "task",
        "metric",
        "sampling",
        "weighting",
        "conflict",
        "advantage",
        "rollouts",
        "reward",
        "form",
        "space",
        "searcher",
        "scheduler",
        "runner",
    ],
)
def test_every_built_in_kind_is_light_to_name(family):
    code = (
        "import importlib, tilth.kinds as kinds\n"
        f"for path in kinds.KINDS[{family!r}].values(): importlib.import_module(path.partition(':')[0])\n"
    )
    assert python("-c", code + LOADED.format(heavy=HEAVY)) == "[]\n"


def test_check_does_little(recipe):
    """Calls are counted, not seconds: the same on every machine. `make bench` takes the seconds."""
    code = (
        "import cProfile, pstats, sys\n"
        "profile = cProfile.Profile()\n"
        "profile.enable()\n"
        "from tilth.cli import main\n"
        f"assert main(['check', {str(recipe)!r}]) == 0\n"
        "profile.disable()\n"
        "print(pstats.Stats(profile, stream=sys.stderr).total_calls)\n"
    )
    python("-c", code, PYTHONDONTWRITEBYTECODE="")
    calls = int(python("-c", code).splitlines()[-1])
    assert calls < CHECK_CALLS, f"tilth check makes {calls} calls; is something loaded or built that no recipe names?"


def test_the_standard_librarys_platform_is_not_shadowed(root):
    assert not (root / "platform/__init__.py").exists()
    assert python("-c", "import platform, tilth; print(platform.python_implementation())").strip()
    for folder in (root, root / "platform"):
        code = f"import sys; sys.path.insert(0, {str(folder)!r}); import platform; print(platform.machine())"
        assert python("-c", code).strip()


def layer(module):
    """The row of a module in LAYERS."""
    name = module.split(".")[1] if "." in module else "__init__"
    found = [rank for rank, names in enumerate(LAYERS) if name in names]
    assert found, f"give tilth.{name} a layer"
    return found[0]


def imports(path):
    """Every tilth module that a file imports when it runs, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "tilth")
        elif isinstance(node, ast.ImportFrom) and node.module == "tilth":
            yield from (f"tilth.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tilth."):
            yield node.module


def edges(root):
    source = root / "platform"
    for path in sorted((source / "tilth").rglob("*.py")):
        module = ".".join(path.relative_to(source).with_suffix("").parts)
        yield from ((module, other) for other in imports(path))


def test_layers_point_one_way(root):
    found = list(edges(root))
    upward = [f"{module} imports {other}" for module, other in found if layer(other) > layer(module)]
    assert len(found) > 100
    assert upward == []


def test_siblings_meet_through_artifacts_only(root):
    def package(module):
        return module.split(".")[1]

    across = [
        f"{module} imports {other}"
        for module, other in edges(root)
        if {package(module), package(other)} <= SIBLINGS and package(module) != package(other)
    ]
    assert across == []
