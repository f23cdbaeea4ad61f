"""A recipe: a name and named stages. Loading, overriding and checking it, all before anything starts."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import yaml
from pydantic import Field, ValidationError

from tilth import yaml12
from tilth.config import Component, Ref
from tilth.errors import Problem, RecipeError
from tilth.kinds import KINDS, load_class

if TYPE_CHECKING:
    from tilth.runs import Artifact, Out


class Stage(Component, family="stage"):
    """One box of work: takes artifacts, leaves one."""

    #: What `"@stage"` refers to: "dataset", "model" or "report".
    produces: ClassVar[str] = "report"

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        """Do the work under `out`; `inputs` maps each "@stage" of this config to its artifact."""
        raise TypeError(f"{type(self).__name__} must define run()")

    def estimate(self, rows: int) -> dict[str, float]:
        """Rough cost for `rows` input rows, where known: rows, tokens, seconds, gib."""
        return {"rows": rows}


class Recipe(Component):
    """A name and named stages; later stages refer to earlier ones as "@name"."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run and its report.")
    description: str = Field("", description="One or two sentences for the report.")
    stages: dict[str, Stage] = Field(min_length=1, description="Stages by name; order does not matter.")

    def order(self) -> list[str]:
        """Stage names, each after those that it refers to."""
        graph = {name: {ref.stage for _, ref in stage.refs()} for name, stage in self.stages.items()}
        return [name for name in TopologicalSorter(graph).static_order() if name in self.stages]

    def check(self) -> list[Problem]:
        """Every fault: references, cycles, and what each component finds in itself."""
        problems = list(self._reference_problems())
        for name, stage in self.stages.items():
            problems += [_under(f"stages.{name}", problem) for problem in stage.check()]
            for path, child in stage.children():
                problems += [_under(f"stages.{name}.{path}", problem) for problem in child.check()]
        return problems

    def _reference_problems(self) -> Iterator[Problem]:
        for name, stage in self.stages.items():
            for path, ref in stage.refs():
                where = f"stages.{name}.{path}"
                target = self.stages.get(ref.stage)
                if target is None:
                    yield Problem(where, f"no stage is named {ref.stage!r}", _mean(ref.stage, self.stages, "@"))
                elif ref.wants not in ("any", target.produces):
                    what = f"needs a {ref.wants}, but {ref} ({target.kind}) produces a {target.produces}"
                    fits = [f"@{n}" for n, s in self.stages.items() if s.produces == ref.wants and n != name]
                    yield Problem(where, what, f"stages that fit: {', '.join(fits) or 'none yet'}")
        try:
            self.order()
        except CycleError as error:
            yield Problem("stages", "refer to each other in a circle: " + " → ".join(error.args[1]))

    def dump_yaml(self) -> str:
        """This recipe as YAML, every default written out; loading it gives an equal recipe."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True, width=100)


def load(source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe of a YAML file, mapping or object, with dotted `a.b.c=value` overrides applied.

    Raises RecipeError with every problem found: unknown keys, wrong types, ranges, references, cycles.
    """
    lines: dict[str, int] = {}
    if isinstance(source, Recipe):
        data = source.model_dump()
    elif isinstance(source, Mapping):
        data = copy.deepcopy(dict(source))
    else:
        data, lines = yaml12.parse(_text(source), str(source))
    name = str(source) if lines else "recipe"
    for override in overrides:
        _override(data, override)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError([_located(_problem(item, data), lines, name) for item in error.errors()]) from error
    if problems := recipe.check():
        raise RecipeError([_located(problem, lines, name) for problem in problems])
    return recipe


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(str(path), f"cannot be read: {error}")]) from error


def _override(data: dict[str, Any], text: str) -> None:
    """Set one dotted path; mappings on the way are made, list items are taken by number."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError([Problem(text, "is not an override", "write a.b.c=value")])
    here: Any = data
    for key in keys[:-1]:
        here = here.setdefault(key, {}) if isinstance(here, dict) else _item(here, key, text)
    if isinstance(here, list):
        _item(here, keys[-1], text)
        here[int(keys[-1])] = yaml12.scalar(value)
    elif isinstance(here, dict):
        here[keys[-1]] = yaml12.scalar(value)
    else:
        raise RecipeError([Problem(path, f"{keys[-2]} is {here!r}, which has no keys")])


def _item(here: Any, key: str, text: str) -> Any:
    if isinstance(here, list) and key.isdigit() and int(key) < len(here):
        return here[int(key)]
    what = f"has items 0 to {len(here) - 1}, not {key!r}" if isinstance(here, list) else f"is {here!r}, no mapping"
    raise RecipeError([Problem(text, what)])


def _under(prefix: str, problem: Problem) -> Problem:
    return Problem(f"{prefix}.{problem.where}".rstrip("."), problem.what, problem.mend)


def _located(problem: Problem, lines: Mapping[str, int], name: str) -> Problem:
    """The problem with file and line, where the recipe came from a file."""
    if not lines:
        return problem
    path = problem.where
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return Problem(f"{name}:{lines.get(path, 1)}: {problem.where}", problem.what, problem.mend)


def _mean(given: str, known: Mapping[str, Any] | Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    if close:
        return f'did you mean "{prefix}{close[0]}"?'
    return f"there are: {', '.join(f'{prefix}{k}' for k in sorted(known))}"


def _problem(item: Any, data: Any) -> Problem:
    """One pydantic error in our words."""
    where = ".".join(map(str, item["loc"])) or "recipe"
    context = item.get("ctx", {})
    match item["type"]:
        case "extra_forbidden":
            *parent, key = item["loc"]
            return Problem(where, "unknown field", _mean(str(key), _fields_at(tuple(parent), data)))
        case "missing":
            return Problem(where, "is missing", "it has no default")
        case "kind_missing" | "model_type" | "model_attributes_type" if "family" in context:
            return Problem(where, "needs a kind", f"one of: {', '.join(sorted(KINDS[context['family']]))}")
        case "kind_unknown":
            return Problem(where, context["why"], _mean(context["given"], KINDS[context["family"]]))
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal" | "literal_error":
            return Problem(
                where, f"{item['msg'].removeprefix('Input s').replace('hould', 'must', 1)}, not {item['input']!r}"
            )
    given = repr(item["input"])
    return Problem(where, f"{item['msg']} (it is {given[:77] + '…' if len(given) > 78 else given})")


def _fields_at(location: tuple[Any, ...], data: Any) -> list[str]:
    """The fields that the component at `location` of the raw recipe does have."""
    cls: type[Component] | None = Recipe
    for key in location:
        if cls is None:
            return []
        data = data[key]
        field = cls.model_fields.get(str(key))
        cls = _component_in(field.annotation if field else cls)
        if cls is not None and cls.abstract and isinstance(data, Mapping) and "kind" in data:
            cls = load_class(cls.family, data["kind"])
    return list(cls.model_fields) if cls is not None else []


def _component_in(annotation: Any) -> type[Component] | None:
    if isinstance(annotation, type) and issubclass(annotation, Component):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _component_in(arg))), None)
