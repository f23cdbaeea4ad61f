"""What pydantic found wrong, in our words: where, the rule, the value, the way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from tilth.config import Component
from tilth.errors import Problem
from tilth.kinds import KINDS, load_class
from tilth.sound import component_in

#: as pydantic lists what may stand in a place
_QUOTED = re.compile(r"'([^']*)'")
_RULE = re.compile(r"^(?:[A-Z][a-z]+ )+should |^Value error, ")


def problems(error: ValidationError, data: Any, root: type[Component]) -> list[Problem]:
    """Every fault of the raw recipe `data`, one for each place; the branches of a union are one fault."""
    found: dict[str, list[Problem]] = {}
    errors = error.errors()
    faulty = {item["loc"][:depth] for item in errors for depth in range(len(item["loc"]))}
    for item in errors:
        if item["type"] == "too_short" and item["loc"] in faulty:
            continue  # pydantic counts only the sound items; what ails the others is said already
        problem = _problem(item, _place(item["loc"], data, item["type"]), data, root)
        found.setdefault(problem.where, []).append(problem)
    return [_merged(group) for group in found.values()]


def nearest(given: str, known: Iterable[str], prefix: str = "") -> str:
    """A way out for a name that is not known: the one that was meant, or all that there are."""
    names = sorted(known)
    if meant := _meant(given, names, prefix):
        return meant
    return f"there are: {', '.join(prefix + name for name in names)}" if names else ""


def _meant(given: Any, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.6)
    return f'did you mean "{prefix}{close[0]}"?' if close else ""


def _place(location: tuple[Any, ...], data: Any, kind: str) -> tuple[Any, ...]:
    """The part of pydantic's location that a person wrote: without the names of union branches and `[key]`.

    A field of a family may be written by its kind (`lora: {…}` for `peft: {kind: lora, …}`).
    """
    for depth, key in enumerate(location):
        if isinstance(data, Mapping) and key not in data:
            short = next((kind for kind in KINDS.get(key, {}) if kind in data), key)
            location = (*location[:depth], short, *location[depth + 1 :])
            key = short
        inside = isinstance(data, list | tuple) and isinstance(key, int) and key < len(data)
        if not inside and not (isinstance(data, Mapping) and key in data):
            return location[: depth + 1] if kind == "missing" and isinstance(data, Mapping) else location[:depth]
        data = data[key]
    return location


def _problem(item: Any, place: tuple[Any, ...], data: Any, root: type[Component]) -> Problem:
    where = ".".join(map(str, place)) or "recipe"
    context = item.get("ctx", {})
    match item["type"]:
        case "extra_forbidden":
            return Problem(where, "unknown field", nearest(str(place[-1]), _fields_at(place[:-1], data, root)))
        case "missing":
            return Problem(where, "is missing", "it has no default")
        case "kind_missing":
            kinds = KINDS.get(context["family"], {})
            if context["given"] in kinds:
                return Problem(where, "needs a kind", f"write {{kind: {context['given']}}}")
            return Problem(where, "needs a kind", f"one of: {', '.join(sorted(kinds))}" if kinds else "")
        case "kind_unknown":
            given = context["given"]  # "module:Class" is resembled by none of our names
            return Problem(
                where, context["why"], "" if ":" in given else nearest(given, KINDS.get(context["family"], {}))
            )
        case "kind":
            return Problem(where, item["msg"])
    given = repr(item["input"])
    rule = _RULE.sub(lambda found: "" if found[0].startswith("Value") else "must ", item["msg"])
    if ", not " in rule:  # pydantic named the value, as in "at least 1 item, not 0"
        return Problem(where, rule.replace(" after validation", ""))
    choices = _QUOTED.findall(context.get("expected", "")) if item["type"] == "literal_error" else ()
    what = f"{rule}, not {given[:77] + '…' if len(given) > 78 else given}"
    return Problem(where, what, _meant(item["input"], choices))


def _merged(group: list[Problem]) -> Problem:
    """The one problem of a place; several are the branches of a union, any of which would do."""
    first, *others = group
    if not others:
        return first
    rules = [problem.what.partition(", not ")[0] for problem in group]
    either = " or ".join([rules[0], *(rule.removeprefix("must be ") for rule in rules[1:])])
    return Problem(first.where, either + "".join(first.what.partition(", not ")[1:]), first.mend)


def _fields_at(location: tuple[Any, ...], data: Any, root: type[Component]) -> list[str]:
    """The fields that the component at `location` of the raw recipe does have."""
    cls: type[Component] | None = root
    for key in location:
        if cls is None:
            return []
        data = data[key]
        field = cls.model_fields.get(str(key))
        family = next((name for name in cls.model_fields if key in KINDS.get(name, {})), None)
        cls = load_class(family, key) if family and not field else component_in(field.annotation if field else cls)
        if cls is not None and cls.abstract and isinstance(data, Mapping) and "kind" in data:
            cls = load_class(cls.family, data["kind"])
    return list(cls.model_fields) if cls is not None else []


def located(problem: Problem, lines: Mapping[str, int], name: str, changed: Sequence[str]) -> Problem:
    """The problem with file and line, where the recipe came from a file and the value from no override."""
    path = problem.where
    unwritten = bool(lines) and path not in lines  # made by an override on the way to its own field
    if any(
        f"{path}.".startswith(f"{override}.")
        or override == f"{path}.kind"
        or (unwritten and override.startswith(f"{path}."))
        for override in changed
    ):
        return Problem(f"override {path}", problem.what, problem.mend)
    if not lines:
        return problem
    return Problem(f"{name}:{line(problem, lines)}: {problem.where}", problem.what, problem.mend)


def line(problem: Problem, lines: Mapping[str, int]) -> int:
    """The line of the faulty value, or of the nearest thing around it that is written."""
    path = problem.where
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return lines.get(path, 1)
