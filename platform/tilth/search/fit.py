"""Whether a search fits the recipe that it stands in: every path, and every value at the corners of its space."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tilth.errors import Problem, RecipeError
from tilth.problems import nearest, problems
from tilth.recipe import Recipe, Stage
from tilth.search.looking import measuring, peeking, redrawn, unknown_tasks
from tilth.search.measures import home
from tilth.search.places import Data, Keys, keys_of, located, ordered, place, there, value_at
from tilth.search.space import Choice, Simplex, Space

if TYPE_CHECKING:
    from tilth.search.stage import Search

MOST_POINTS = 10_000
#: a value of the space, or none, and the recipe's data with it
Base = tuple[dict[str, Any], Data]


def chain(search: Search, recipe: Recipe) -> Recipe:
    """The part of the recipe that trials run, if only to find it done, with every "@stage" that a value names."""
    named = {ref.stage for space in search.space.values() for _, ref in space.refs()}
    return recipe.part([*ends(search), *sorted(named)])


def ends(search: Search) -> list[str]:
    """What each trial runs, with all that this builds on: the searched stage, and those that measure it."""
    return [search.target, *sorted({home(search.target, objective.metric) for objective in search.objectives})]


def reached(search: Search, recipe: Recipe) -> list[str]:
    """The stages of the chain that another value runs again."""
    part = chain(search, recipe)
    paths = [*search.space, *([search.repeats.path] if search.repeats else ())]
    touched = {keys_of(search.target, path)[1] for path in paths}
    for name in part.order():
        if touched & {ref.stage for _, ref in part.stages[name].refs()}:
            touched.add(name)
    return [name for name in part.order() if name in touched]


def unfit(search: Search, recipe: Recipe) -> Iterator[Problem]:
    """Every fault that shows beside the other stages; all references hold."""
    if recipe.stages[search.target].stands_for is not None:
        yield Problem("stage", f"{search.stage} is a search itself", "name the stage that is to be searched")
        return
    yield from (*measuring(search, recipe), *_scheduling(search, recipe), *_size(search))
    part = chain(search, recipe)
    bases = list(_bases(search, part))
    yield from (*_twice(search, bases), *_of_shares(search))
    for path in ordered(search.target, search.space):
        yield from _path_problems(search, part, path, search.space[path], bases)
    if search.repeats is not None:
        seeds = Choice.model_construct(values=search.repeats.seeds)
        for problem in _path_problems(search, part, search.repeats.path, seeds, bases[:1]):
            yield Problem("repeats.path", problem.what, problem.mend)
        yield from _seeds(search, bases[0][1])


def _twice(search: Search, bases: Sequence[Base]) -> Iterator[Problem]:
    """Two paths that lead to one place: the value of one of them would be recorded and never run."""
    for chosen, data in bases:
        found: dict[Keys, str] = {}
        for path in search.space:
            keys = there(data, search.target, path, chosen)
            if keys is not None and (first := found.setdefault(keys, path)) != path:
                yield Problem(f"space.{path}", f"leads to the same place as {first}", "keep one of them")
                return


def _of_shares(search: Search) -> Iterator[Problem]:
    """Paths to a single share of a simplex."""
    divided = [path for path, space in search.space.items() if isinstance(space, Simplex)]
    for path, outer in product(search.space, divided):
        inner, keys = keys_of(search.target, path), keys_of(search.target, outer)
        if len(inner) > len(keys) and inner[: len(keys)] == keys:
            yield Problem(f"space.{path}", f"is a share of {outer}, which would not sum to its total", "keep one")


def _seeds(search: Search, written: Data) -> Iterator[Problem]:
    """A finalist was picked by the recipe's seed, or a searched one: with that, or one twice, luck would be skill."""
    if search.repeats is None:
        return
    seeds, keys = search.repeats.seeds, keys_of(search.target, search.repeats.path)
    searched = [space.points() or () for path, space in search.space.items() if keys_of(search.target, path) == keys]
    run_with = searched[0] if searched else [value_at(written, keys)]
    for seed in (seed for seed in seeds if seed in run_with):
        yield Problem("repeats.seeds", f"{seed} is a seed that the search itself runs with", "use others")
    if len(set(seeds)) < len(seeds):
        yield Problem("repeats.seeds", "a seed stands there twice", "name each once")


def _scheduling(search: Search, recipe: Recipe) -> Iterator[Problem]:
    target = recipe.stages[search.target]
    if search.scheduler is not None and search.scheduler.metric not in target.tells:
        told = ", ".join(target.tells)
        mend = f"it tells {told}" if told else "a training stage does with validation: {every_steps: …}"
        yield Problem("scheduler.metric", f"{search.stage} tells no {search.scheduler.metric} while it runs", mend)


def _size(search: Search) -> Iterator[Problem]:
    sizes = [len(points) for space in search.space.values() if (points := space.points()) is not None]
    if search.searcher.lists and len(sizes) == len(search.space) and math.prod(sizes) > MOST_POINTS:
        yield Problem("searcher", f"a grid of {math.prod(sizes):,} points is too large", "take tpe or random")


def _bases(search: Search, part: Recipe) -> Iterator[Base]:
    """The recipe as written, and with each component, list, kind or null that the space may choose."""
    written = part.model_dump()
    yield {}, written
    for path in ordered(search.target, search.space):
        space = search.space[path]
        for value in space.points() or () if isinstance(space, Choice) else ():
            keys = located(written, keys_of(search.target, path))
            holds = value is None or isinstance(value, dict | list)
            if keys is not None and (holds or keys[-1] == "kind") and _leads(part, keys):
                with suppress(RecipeError):  # which is said of the path itself
                    yield {path: value}, _with(written, keys, value, path)


def _leads(part: Recipe, keys: Keys) -> bool:
    return len(keys) > 2 and keys[1] in part.stages


def _with(data: Data, keys: Keys, value: Any, path: str) -> Data:
    tried = copy.deepcopy(data)
    place(tried, keys, value, path)
    return tried


def _path_problems(search: Search, part: Recipe, path: str, space: Space, bases: Sequence[Base]) -> Iterator[Problem]:
    """The first fault of a path: it leads nowhere, never, or to where one of its values does not fit."""
    where, keys = f"space.{path}", keys_of(search.target, path)
    if not _leads(part, keys):
        named = keys[1] if len(keys) > 1 else ""
        what = "names no field of a stage" if named in part.stages else f"no stage {named!r} leads to the metric"
        yield Problem(where, what, nearest(named, part.stages))
        return
    places = [
        (chosen, data, found)
        for chosen, data in bases
        if (found := there(data, search.target, path, chosen)) is not None
    ]
    if not places:
        yield Problem(where, "is never there: its kind is neither written nor searched", "search the kind too")
    for chosen, data, found in places:
        beside = "".join(f" where {other} is {_shown(held)}" for other, held in chosen.items() if other != path)
        for value in space.corners():
            fault = _fault(search, part, data, found, value)
            if fault is not None:
                yield Problem(where, f"{_shown(value)} does not fit{beside}: {fault.what}", fault.mend)
                return


def _fault(search: Search, part: Recipe, data: Data, keys: Keys, value: Any) -> Problem | None:
    """What is wrong with a stage of `data` once it holds the value where `keys` lead."""
    name = keys[1]
    whole: Data = {"name": "part"}
    try:
        whole["stages"] = {name: _with(data, keys, value, ".".join(keys))["stages"][name]}
        stage: Stage = Recipe.model_validate(whole).stages[name]
    except RecipeError as error:
        return error.problems[0]
    except ValidationError as error:
        return _without_place(problems(error, whole, Recipe)[0], ".".join(keys))
    faults = [*stage.check(), *(fault for _, child in stage.children() for fault in child.check())]
    faults += [*_misleading(part, name, stage), *redrawn(stage, part.stages[name])]
    faults += [*peeking(search, name, stage), *unknown_tasks(stage, part)]
    return faults[0] if faults else None


def _misleading(part: Recipe, name: str, stage: Stage) -> Iterator[Problem]:
    """What is wrong with the references of a stage that stands in the place of the one of this name."""
    refs = {f"stages.{name}.{path}": ref for path, ref in stage.refs()}
    yield from part.reference_problems(refs, ())
    yield from part.model_copy(update={"stages": {**part.stages, name: stage}}).circles()


def _without_place(problem: Problem, path: str) -> Problem:
    inner = "" if problem.where == path else f"{problem.where.removeprefix('stages.')}: "
    return Problem("", f"{inner}{problem.what}", problem.mend)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
