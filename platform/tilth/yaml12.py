"""Reading and writing recipes: YAML with the scalars people expect, every key once, and the line of every value.

PyYAML speaks YAML 1.1, where `1e-4` is a string, `010` is eight and the label `no` is false. Here numbers and
booleans follow YAML 1.2's core schema, and a key that stands twice in one mapping is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import yaml

from tilth.errors import Problem, RecipeError

#: values in one recipe; anchors that repeat anchors make billions out of ten lines
MOST_VALUES = 250_000
_TAG = "tag:yaml.org,2002:"
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?$")


class _Loader(yaml.SafeLoader):
    """SafeLoader without YAML 1.1's surprises."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes every string that YAML 1.1 or 1.2 would read as something else."""


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Digits are decimal, a leading zero makes them no octal number."""
    return int(str(loader.construct_scalar(node)))


_REPLACED = {f"{_TAG}{name}" for name in ("bool", "float", "int", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(f"{_TAG}int", _decimal)
_Dumper.yaml_implicit_resolvers = {key: [*value] for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_TAG}bool", _BOOL, "tTfF")
    _class.add_implicit_resolver(f"{_TAG}int", _INT, "-+0123456789")
    _class.add_implicit_resolver(f"{_TAG}float", _FLOAT, "-+0123456789.")


def parse(text: str, name: str = "recipe") -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in `text`, and the 1-based line of every dotted path in it.

    RecipeError where it is no YAML, no mapping, or a key stands twice.
    """
    lines: dict[str, int] = {}
    try:
        data, twice = _constructed(text, lines)
    except yaml.YAMLError as error:
        raise RecipeError([Problem(name, f"is not valid YAML: {error}")]) from error
    if not isinstance(data, dict):
        raise RecipeError([Problem(name, "must be a mapping with the keys name and stages")])
    if twice:
        raise RecipeError([Problem(name, f"key stands twice: {where}", "keep one") for where in twice])
    return _unshared(data), lines


def scalar(text: str) -> Any:
    """The value of an override's right-hand side: `16`, `1e-4`, `true`, `null`, `[a, b]`, `{a: b}`, `"text"`.

    It is null where there is none; what is none of these as a whole is text as it stands, ` #` and `: ` included.
    """
    text = text.strip()
    try:
        value = _unshared(_constructed(text, {})[0])
        return value if not text or _is_value(text) else text
    except yaml.YAMLError:
        return text


def _is_value(text: str) -> bool:
    """Whether all of it is one number, boolean, null, quoted text, or list or mapping in brackets."""
    node = yaml.compose(text, _Loader)
    if node is None or (node.start_mark.index, node.end_mark.index) != (0, len(text)):
        return False
    if isinstance(node, yaml.ScalarNode):
        return node.tag != f"{_TAG}str" or node.style in ("'", '"')
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def dump(data: Any) -> str:
    """Plain data as YAML that `parse` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _constructed(text: str, lines: dict[str, int]) -> tuple[Any, list[str]]:
    """The value of a document and the places of keys that stand twice in it; notes each path's line in `lines`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        # before construction, which folds `<<: *defaults` into the mapping as if it had been written there
        places = islice(_walk(node), MOST_VALUES + 1)
        twice = [f"line {line}: {path}" for path, line in places if _known(lines, path, line)]
        if len(lines) + len(twice) > MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {MOST_VALUES:,} values")
        return loader.construct_document(node) if node is not None else None, twice
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
    except ValueError as error:  # a tag that its value does not bear, a number of 5,000 digits
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def _walk(node: Any, path: str = "", above: tuple[Any, ...] = ()) -> Iterator[tuple[str, int]]:
    """Every dotted path under `node` and its line, in writing order; a path comes twice where a key does."""
    if any(node is outer for outer in above):
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {path} contains itself")
    if isinstance(node, yaml.MappingNode):
        items = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        items = [(index, value, value) for index, value in enumerate(node.value)]
    else:
        return
    for key, mark, value in items:
        inner = f"{path}.{key}".lstrip(".")
        yield inner, mark.start_mark.line + 1
        yield from _walk(value, inner, (*above, node))


def _known(lines: dict[str, int], path: str, line: int) -> bool:
    """Whether `path` was there already; notes it otherwise."""
    if path in lines:
        return True
    lines[path] = line
    return False


def _unshared(value: Any) -> Any:
    """A copy in which no two places hold one object: overriding one use of an anchor leaves the others."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value
