"""Jinja templates that users write, rendered in a sandbox: no attributes of Python's own, no changes to what is shown.

render("{{ name }}, {{ age }} years", name="Ada", age=36)  →  "Ada, 36 years"
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from tilth.data.schema import LINEAGE, PAYLOADS, Row
from tilth.errors import Problem, StageError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment


#: what a template about a row may name
ROW_NAMES = frozenset((*LINEAGE, *(name for names in PAYLOADS.values() for name in names), "labels"))


class RenderError(ValueError):
    """A template that cannot be rendered with these values; says why."""


def render(template: str, /, **values: Any) -> str:
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


def asked(template: str, row: Row, labels: tuple[str, ...] = ()) -> str:
    """The text of a template about a row; StageError, which names the row, where it has none."""
    try:
        return render(template, **{**row, "labels": labels})
    except RenderError as error:
        raise StageError(f"row {row['id']}: the prompt cannot be written: {error}") from error


def row_problems(template: str | None) -> list[Problem]:
    """What ails the template of a prompt about rows."""
    why = None if template is None else fault(template, ROW_NAMES)
    return [Problem("prompt", why, f"it may name: {', '.join(sorted(ROW_NAMES))}")] if why else []


def joined(question: str, answer: str) -> str:
    """A question with its answer after it, a space between where none is."""
    return question + answer if question[-1:].isspace() or answer[:1].isspace() else f"{question} {answer}"


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
