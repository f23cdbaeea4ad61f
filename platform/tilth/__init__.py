"""Tilth: data augmentation and LLM training on Ray, from raw rows to an evaluated model, in one recipe.

    import tilth

    recipe = tilth.load("examples/quickstart.yaml")      # checked: every key, range and reference
    run = tilth.run(recipe, out="runs/quickstart")       # stages that are already done are reused
    print(run["report"].metrics)

Importing this package loads no torch, ray, transformers, vllm or deepspeed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilth.config import Component
    from tilth.errors import RecipeError, StageError, TilthError
    from tilth.recipe import Recipe, Stage, load
    from tilth.runs import Artifact, Run, run

__version__ = "0.1.0"
__all__ = [
    "Artifact",
    "Component",
    "Recipe",
    "RecipeError",
    "Run",
    "Stage",
    "StageError",
    "TilthError",
    "__version__",
    "load",
    "run",
]

# where each public name is defined; imported on first use, so that `import tilth` stays light
_HOME = {
    "tilth.config": ("Component",),
    "tilth.errors": ("RecipeError", "StageError", "TilthError"),
    "tilth.recipe": ("Recipe", "Stage", "load"),
    "tilth.runs": ("Artifact", "Run", "run"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'tilth' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
