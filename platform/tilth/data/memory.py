"""How much memory the models of a data stage take, as far as can be told before any is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tilth.config import Component
from tilth.data.transform import Resources, Transform

if TYPE_CHECKING:
    from tilth.weights import Sized, Weights

_WIDTHS = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4}


def model_bytes(component: Component, sized: Sized, resources: Resources) -> dict[str, float] | None:
    """Bytes of each model that one worker loads, by name; None where the size of one is unknown.

    A component's field `dtype` or `precision` says the number format, else it is float32. One that says auto takes
    weights on a GPU as they are stored, and on a CPU as float32.
    """
    found: dict[str, float] = {}
    for owner, model in component.named_models():
        weights = sized(model)
        if weights is None:
            return None
        width = _width(owner, weights, on_gpu=resources.gpus > 0)
        found[model] = max(found.get(model, 0), weights.parameters * width)
    return found


def _width(owner: Component, weights: Weights, *, on_gpu: bool) -> float:
    said = getattr(owner, "dtype", None) or getattr(owner, "precision", None)
    if said == "auto" and on_gpu:
        return weights.width
    return _WIDTHS.get(str(said), 4)


def in_all_workers(one: float, resources: Resources) -> float | None:
    """What so many bytes in one worker come to; None where only the cluster tells the number of workers."""
    if resources.workers == "auto" and (resources.gpus or "RAY_ADDRESS" in os.environ):
        return None
    return one * max(1, resources.count({"CPU": os.cpu_count() or 1}))


def held(component: Component, sized: Sized, resources: Resources) -> float | None:
    """Bytes of all models in all workers, also in those of steps that have their own; None where there are none or
    they are not known."""
    total = 0.0
    for parts, pool in _pools(component, resources):
        models: dict[str, float] = {}
        for part in parts:
            if (found := model_bytes(part, sized, pool)) is None:
                return None
            models |= found
        if models:
            if (taken := in_all_workers(sum(models.values()), pool)) is None:
                return None
            total += taken
    return total or None


def _pools(component: Component, resources: Resources) -> list[tuple[Sequence[Component], Resources]]:
    """What the workers of each pool load: steps, and with the first of the stage's own all that is no step."""
    steps: tuple[Transform, ...] = getattr(component, "steps", ())
    if resources.workers == 0 or not any(step.resources for step in steps):
        return [([component], resources)]
    pools = [(pool, tuple(part)) for pool, part in groupby(steps, lambda step: step.resources)]
    first = pools.pop(0)[1] if pools[0][0] is None else ()
    others = [(part, pool or resources) for pool, part in pools]
    return [([component.model_copy(update={"steps": first})], resources), *others]
