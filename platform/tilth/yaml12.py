"""Reading recipes: YAML with the scalars people expect, every key once, and the line of every value.

PyYAML speaks YAML 1.1, where `1e-4` is a string and the label `no` is false. Here numbers and booleans
follow YAML 1.2's core schema, and a key that stands twice in one mapping is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from tilth.errors import Problem, RecipeError


class _Loader(yaml.SafeLoader):
    """SafeLoader without YAML 1.1's surprises."""


_REPLACED = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), "-+0123456789")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?$"),
    "-+0123456789.",
)


def parse(text: str, name: str = "recipe") -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in `text`, and the 1-based line of every dotted path in it."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise RecipeError([Problem(name, f"is not valid YAML: {error}")]) from error
    if not isinstance(data, dict):
        raise RecipeError([Problem(name, "must be a mapping with the keys name and stages")])
    lines: dict[str, int] = {}
    twice = [f"line {line}: {path}" for path, line in _walk(node, "") if lines.setdefault(path, line) != line]
    if twice:
        raise RecipeError([Problem(name, f"key stands twice: {where}", "keep one") for where in twice])
    return data, lines


def scalar(text: str) -> Any:
    """The value of an override's right-hand side: `16`, `1e-4`, `true`, `[a, b]`, else text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def _walk(node: Any, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}".lstrip(".")
            yield inner, key.start_mark.line + 1
            yield from _walk(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = f"{path}.{index}"
            yield inner, value.start_mark.line + 1
            yield from _walk(value, inner)
