"""Jinja templates that users write, rendered in a sandbox: no attributes of Python's own, no changes to what is shown.

render("{{ name }}, {{ age }} years", name="Ada", age=36)  →  "Ada, 36 years"
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment


class RenderError(ValueError):
    """A template that cannot be rendered with these values; says why."""


def render(template: str, **values: Any) -> str:
    """The text of a template; RenderError where it names what there is not, or fails."""
    from jinja2 import TemplateError

    try:
        return _compiled(template).render(values)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise RenderError(f"{type(error).__name__}: {error}") from error


def fault(template: str, known: Iterable[str] | None = None, filters: tuple[str, ...] = ()) -> str | None:
    """What is wrong with a template, also that it names something besides what is `known`; None where nothing is.

    `filters` are those that whoever renders it has besides Jinja's own.
    """
    from jinja2 import TemplateSyntaxError, meta

    try:
        named = meta.find_undeclared_variables(_environment(filters).parse(template))
    except TemplateSyntaxError as error:  # an unknown filter is one too
        return f"is no template: {error.message} (line {error.lineno})"
    named -= {*_environment().globals}
    unknown = sorted(named - set(known)) if known is not None else []
    return f"names {', '.join(unknown)}, which there is not" if unknown else None


@cache
def _environment(filters: tuple[str, ...] = ()) -> ImmutableSandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    made.filters |= dict.fromkeys(filters, str)
    return made


@cache
def _compiled(template: str) -> Template:
    return _environment().from_string(template)
