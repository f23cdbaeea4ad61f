"""Where a searched path leads in a recipe, and the recipe that a trial's values make.

A path begins at the searched stage, `model.lora.rank`, or as on the command line, `stages.augment.steps.0.variants`.
A step of it may name a kind, as `lora` does: the path is there only where that kind is chosen, so that the fields of
several kinds can be searched together with the kind itself. Nor is it there in a component that null is chosen for,
where a recipe's own null is only what nobody has written yet. Another kind begins a component of its own: the fields
that are written for the one before it go with that.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tilth.kinds import KINDS
from tilth.overrides import assign
from tilth.recipe import Recipe
from tilth.search.space import Draws, Space

Keys = tuple[str, ...]
Data = dict[str, Any]


def keys_of(stage: str, path: str) -> Keys:
    """The path from the recipe on."""
    keys = tuple(path.split("."))
    return keys if keys[0] == "stages" else ("stages", stage, *keys)


def ordered(stage: str, paths: Iterable[str]) -> list[str]:
    """What lies outside before what lies inside it, and a kind before its fields, however the paths are written."""

    def depth(path: str) -> tuple[int, bool]:
        keys = keys_of(stage, path)
        return len(keys), keys[-1] != "kind"

    return sorted(paths, key=depth)


def with_value(stage: str, values: Mapping[str, Any], path: str, value: Any) -> Data:
    """The values with this one, and without that of another spelling of its path."""
    kept = {other: held for other, held in values.items() if keys_of(stage, other) != keys_of(stage, path)}
    return {**kept, path: value}


def located(data: Data, keys: Keys) -> Keys | None:
    """Where `keys` lead in plain data; None where they lead through a kind that is not chosen."""
    here: Any = data
    found = []
    for key in keys:
        if isinstance(here, dict) and key not in here and (field := _field(here, key)) is not None:
            if not isinstance(here[field], dict) or here[field].get("kind") != key:
                return None
            key = field
        found.append(key)
        here = _within(here, key)
    return tuple(found)


def there(data: Data, stage: str, path: str, values: Mapping[str, Any]) -> Keys | None:
    """Where a path leads in plain data that holds these values; None where it is not there."""
    keys = keys_of(stage, path)
    nothing = [keys_of(stage, other) for other, value in values.items() if value is None]
    if any(len(outer) < len(keys) and keys[: len(outer)] == outer for outer in nothing):
        return None
    return located(data, keys)


def _field(here: Data, kind: str) -> str | None:
    """The field that may hold a component of this kind."""
    return next((name for name in here if kind in KINDS.get(name, {}) and not isinstance(here[name], str)), None)


def _within(here: Any, key: str) -> Any:
    if isinstance(here, dict):
        return here.get(key)
    return here[int(key)] if isinstance(here, list) and key.isdigit() and int(key) < len(here) else None


def value_at(data: Data, keys: Keys) -> Any:
    """What stands there; None where nothing does."""
    here: Any = data
    for key in located(data, keys) or ():
        here = _within(here, key)
    return None if here is data else here


def place(data: Data, keys: Keys, value: Any, path: str) -> None:
    """Set what `keys`, as `located`, lead to; RecipeError where they lead nowhere."""
    if keys[-1] == "kind":
        here: Any = data
        for key in keys[:-1]:
            here = _within(here, key)
        if isinstance(here, dict) and here.get("kind") != value:
            here.clear()
    assign(data, keys, copy.deepcopy(value), path)


def changed(recipe: Recipe, stage: str, values: Mapping[str, Any]) -> Recipe:
    """The recipe with these values, by path; all of them lead somewhere."""
    data = recipe.model_dump()
    for path in ordered(stage, values):
        if (keys := there(data, stage, path, values)) is not None:
            place(data, keys, values[path], path)
    return Recipe.model_validate(data)


def drawn(recipe: Recipe, stage: str, space: Mapping[str, Space], draws: Draws) -> dict[str, Any]:
    """A value for each path that is there, given the values before it."""
    data = recipe.model_dump()
    values: dict[str, Any] = {}
    for path in ordered(stage, space):
        if (keys := there(data, stage, path, values)) is not None:
            values[path] = space[path].draw(path, draws)
            place(data, keys, values[path], path)
    return values


def grid(recipe: Recipe, stage: str, space: Mapping[str, Space]) -> list[dict[str, Any]]:
    """Every point of a space whose parts all have points."""
    return list(_grid(recipe.model_dump(), stage, [(path, space[path]) for path in ordered(stage, space)], {}))


def _grid(
    data: Data, stage: str, parts: Sequence[tuple[str, Space]], values: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The points that begin with these values, which `data` holds."""
    if not parts:
        yield values
        return
    (path, space), *rest = parts
    if (keys := there(data, stage, path, values)) is None:
        yield from _grid(data, stage, rest, values)
        return
    for value in space.points() or ():
        tried = copy.deepcopy(data)
        place(tried, keys, value, path)
        yield from _grid(tried, stage, rest, {**values, path: value})
