"""Template files of promptsource (Bach et al. 2022, arXiv:2202.01279), the source of P3, read without trusting them.

templates:
  24e44a81-…: !Template
    name: classify
    jinja: "{{text}} What label best describes this news article? ||| {{answer_choices[label]}}"
    answer_choices: World politics ||| Sports ||| Business ||| Science and technology
"""

from __future__ import annotations

from typing import Any

import yaml

_GLOBALS = {"range", "dict", "namespace", "cycler", "joiner", "lipsum", "zip", "enumerate"}
_WITHIN = {"loop", "self", "super", "caller", "varargs", "kwargs"}
#: filters that promptsource has besides Jinja's own
FILTERS = ("choice", "most_frequent")
# libyaml's parser where PyYAML has it: a recipe is checked with every file that it names
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """A safe loader that takes promptsource's two tags for plain mappings; any other tag is an error."""


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))


def read_templates(text: str) -> list[dict[str, Any]]:
    """{name, jinja, answer_choices} of every template, in the order of the file; ValueError says what is wrong."""
    try:
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"is not the YAML of promptsource: {error}") from error
    templates = data.get("templates") if isinstance(data, dict) else None
    if not isinstance(templates, dict) or not templates:
        raise ValueError("is not the YAML of promptsource: it has no mapping `templates`")
    return [_template(name, item) for name, item in templates.items()]


def _template(key: Any, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get("jinja"), str):
        raise ValueError(f"template {key} has no jinja")
    choices = item.get("answer_choices")
    if choices is not None and not isinstance(choices, str):
        raise ValueError(f"template {key}: answer_choices must be text")
    return {"name": str(item.get("name") or key), "jinja": item["jinja"], "answer_choices": choices or None}


def inspected(jinja: str) -> tuple[set[str], str | None]:
    """The names that a template takes from a row, and what is wrong with it; None where nothing is.

    It is only parsed. Compiling, as `jinja2.meta` does, would compute what is constant, for ever if need be.
    """
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment()
    try:
        tree = environment.parse(jinja)
    except (TemplateSyntaxError, RecursionError) as error:
        return set(), f"is no template: {error}"
    used = {node.name for node in tree.find_all(nodes.Filter)} - {*environment.filters, *FILTERS}
    found = list(tree.find_all(nodes.Name))
    own = {node.name for node in found if node.ctx != "load"} | {node.name for node in tree.find_all(nodes.Macro)}
    names = {node.name for node in found} - own - _GLOBALS - _WITHIN
    return names, f"uses {', '.join(sorted(used))}, which is no filter" if used else None
