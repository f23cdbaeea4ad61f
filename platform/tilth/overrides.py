"""Setting fields of a recipe by dotted paths, `stages.sft.model.lora.rank=16`, in plain data before it is checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tilth import yaml12
from tilth.errors import Problem, RecipeError
from tilth.problems import nearest


def overridden(data: dict[str, Any], overrides: Sequence[str]) -> Iterator[Problem]:
    """Set every override that can be set; what is wrong with the others."""
    for override in overrides:
        try:
            _override(data, override)
        except RecipeError as error:
            yield from error.problems


def _override(data: dict[str, Any], text: str) -> None:
    """Set one dotted path; mappings on the way are made, list items are taken by number."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError([Problem(text, "is not an override", "write a.b.c=value")])
    _known_stage(data, keys, text)
    assign(data, keys, yaml12.scalar(value), text)


def assign(data: dict[str, Any], keys: Sequence[str], value: Any, text: str) -> None:
    """Set what `keys` lead to in plain data; RecipeError, with `text` as the place, where they lead nowhere."""
    here: Any = data
    for key in keys[:-1]:
        here = _entered(here, key) if isinstance(here, dict) else _item(here, key, text)
    if isinstance(here, list):
        _item(here, keys[-1], text)
        here[int(keys[-1])] = value
    elif isinstance(here, dict):
        here[keys[-1]] = value
    else:
        raise RecipeError([Problem(text.partition("=")[0], f"{keys[-2]} is {here!r}, which has no keys")])


def _known_stage(data: dict[str, Any], keys: Sequence[str], text: str) -> None:
    """A field of a stage that is not there is a slip, unless it is its kind, which begins a new one."""
    stages = data.get("stages")
    if keys[0] != "stages" or len(keys) < 3 or not isinstance(stages, dict):
        return
    if keys[1] not in stages and keys[2] != "kind":
        raise RecipeError([Problem(text, f"no stage is named {keys[1]!r}", nearest(keys[1], stages))])


def _entered(here: dict[str, Any], key: str) -> Any:
    """The mapping under `key`, made where there is none yet or null."""
    if here.get(key) is None:
        here[key] = {}
    return here[key]


def _item(here: Any, key: str, text: str) -> Any:
    if isinstance(here, list) and key.isdigit() and int(key) < len(here):
        return here[int(key)]
    what = f"has items 0 to {len(here) - 1}, not {key!r}" if isinstance(here, list) else f"is {here!r}, no mapping"
    raise RecipeError([Problem(text, what)])
