"""A recipe: a name and named stages. Loading, overriding and checking it, all before anything starts."""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, ValidationError

from tilth import yaml12
from tilth.config import Component, DatasetRef, DatasetRefStr, Ref
from tilth.errors import Problem, RecipeError
from tilth.nodes import Workers
from tilth.overrides import overridden
from tilth.problems import line, located, nearest, problems
from tilth.sound import sound

if TYPE_CHECKING:
    from tilth.runs import Artifact, Out
    from tilth.storage import Store
    from tilth.trials import Judge, Outcome, Packs, Trial
    from tilth.weights import Sized


#: a stage's directory may hold this before it is begun: what `tilth plan --probe` measured
PROBE = "probe.json"
#: and this beside its result: what was measured of it, which may be measured anew
MEASURED = "quality.json"
#: a running stage that tells figures ends with StageStopped when this appears in its directory
STOP = "stop.json"
#: figures of one step of a running stage, by name
Figures = tuple[int, dict[str, float]]


class Stage(Component, family="stage"):
    """One box of work: takes artifacts, leaves one."""

    #: What `"@stage"` refers to: "dataset", "model" or "report".
    produces: ClassVar[str] = "report"

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        """Do the work under `out`; `inputs` maps each "@stage" of this config to its artifact."""
        raise TypeError(f"{type(self).__name__} must define run()")

    def estimate(self, rows: Mapping[str, int]) -> dict[str, Any]:
        """Rough cost for so many input rows of each split, where known: rows, tokens, seconds, gib.

        With them `splits`: how many rows of each split it leaves, where that is not what it was given.
        """
        return {"rows": sum(rows.values())}

    def work(self, rows: Mapping[str, int], before: Artifact) -> tuple[int, int] | None:
        """What there is to do with so many rows of each split, and what an earlier version did; None: not known."""
        counts = before.counts
        return (sum(rows.values()), counts["inputs"] + counts.get("carried", 0)) if "inputs" in counts else None

    def memory(self, sized: Sized) -> float | None:
        """Bytes that models take in all workers of the stage together; None where it holds none or one is unknown."""
        return None

    @property
    def made_from(self) -> str | None:
        """What the model that this stage leaves is made from, which tells its size before there is one."""
        return None

    def judge(self, artifact: Artifact, inputs: Mapping[str, Artifact]) -> None:
        """StageError where a finished artifact may not be reused: it breaks a limit that is no part of its identity."""

    def probe(self, inputs: Mapping[str, Artifact]) -> dict[str, float]:
        """The same as measured on a few rows of its finished inputs; nothing where a stage has no probe."""
        return {}

    @classmethod
    def packs(cls, stages: Mapping[str, Stage], places: int, room: float | None = None) -> Packs:
        """Which of these stages of this class, by name, can be run together: at most `places` in `room` bytes."""
        from tilth.trials import Packs

        return Packs(apart={name: f"a stage of kind {stage.kind} is run by itself" for name, stage in stages.items()})

    @classmethod
    def pack(cls, trials: Iterable[Trial], places: int, judge: Judge) -> Iterator[Outcome]:
        """Run trials that `packs` put together, `places` at once; each outcome as it comes.

        `trials` is asked for the next one whenever a place is free.
        """
        raise TypeError(f"{cls.__name__} must define pack()")

    @property
    def stands_for(self) -> Ref | None:
        """The stage in whose stead this one leaves a product of the same kind; None: one as `produces` says."""
        return None

    @property
    def encoded(self) -> Ref | None:
        """The dataset whose rows it leaves as token ids, which hold no text; None: its rows can be read."""
        return None

    def check_within(self, recipe: Recipe) -> list[Problem]:
        """Faults that show only beside the other stages of the recipe."""
        return []

    def runs_again(self, recipe: Recipe) -> dict[str, int]:
        """Other stages of the recipe that it runs with other settings: name, and how often."""
        return {}

    @property
    def at_work(self) -> tuple[Workers, ...]:
        """Its workers and actors while it runs, those that are alike together."""
        return (Workers({"CPU": 1.0}),)

    @property
    def tells(self) -> tuple[str, ...]:
        """Names of the figures that it measures on the way."""
        return ()

    def course(self, store: Store) -> Sequence[Figures]:
        """What the stage that runs, or ran, under `store` measured on the way: steps in order."""
        return ()


class TextsRefStr(DatasetRefStr):
    """A dataset whose rows are read as text, whatever their type; token ids are none."""


TextsRef = Annotated[DatasetRef, AfterValidator(TextsRefStr)]
# a directory of the run and a step of a dotted path
StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Recipe(Component):
    """A name and named stages; later stages refer to earlier ones as "@name"."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run and its report.")
    description: str = Field("", description="One or two sentences for the report.")
    stages: dict[StageName, Stage] = Field(min_length=1, description="Stages by name; order does not matter.")

    def order(self) -> list[str]:
        """Stage names, each after those that it refers to."""
        # lists, not sets: the order of two independent stages is then the recipe's, in every process
        graph = {name: [ref.stage for _, ref in stage.refs()] for name, stage in self.stages.items()}
        return [name for name in TopologicalSorter(graph).static_order() if name in self.stages]

    def part(self, names: Iterable[str]) -> Recipe:
        """The recipe of these stages and of all that they build on."""
        kept, open_ = set(), list(names)
        while open_:
            if (name := open_.pop()) not in kept:
                kept.add(name)
                open_ += [ref.stage for _, ref in self.stages[name].refs()]
        return self.model_copy(update={"stages": {name: self.stages[name] for name in self.stages if name in kept}})

    def produces(self, name: str) -> str:
        """What the stage of this name leaves: "dataset", "model" or "report"."""
        stage, seen = self.stages[name], {name}
        while (other := stage.stands_for) is not None and other.stage in self.stages.keys() - seen:
            seen.add(other.stage)
            stage = self.stages[other.stage]
        return stage.produces

    def check(self, unbuilt: Collection[str] = ()) -> list[Problem]:
        """Every fault: references, cycles, and what each component finds in itself.

        `unbuilt` names stages that are written but missing here because they are faulty themselves.
        """
        refs = {f"stages.{name}.{path}": ref for name, stage in self.stages.items() for path, ref in stage.refs()}
        found = [*self.reference_problems(refs, unbuilt), *self.circles()]
        for name, stage in self.stages.items():
            found += _of_component(f"stages.{name}", stage)
        if not found and not unbuilt:
            for name, stage in self.stages.items():
                found += [_under(f"stages.{name}", problem) for problem in stage.check_within(self)]
        return found

    def reference_problems(self, refs: Mapping[str, Ref], unbuilt: Collection[str]) -> Iterator[Problem]:
        """Those of these references, by dotted path, that name no stage or one that leaves something else."""
        for where, ref in refs.items():
            target = self.stages.get(ref.stage)
            if ref.stage in unbuilt:
                continue
            if target is None:
                yield Problem(
                    where, f"no stage is named {ref.stage!r}", nearest(ref.stage, [*self.stages, *unbuilt], "@")
                )
            elif ref.wants not in ("any", produced := self.produces(ref.stage)):
                what = f"needs a {ref.wants}, but {ref} ({target.kind}) produces a {produced}"
                itself = where.split(".")[1]
                fits = [f"@{name}" for name in self.stages if self.produces(name) == ref.wants and name != itself]
                yield Problem(where, what, f"stages that fit: {', '.join(fits) or 'none yet'}")
            elif isinstance(ref, TextsRefStr) and (source := target.encoded) is not None:
                what = f"is read as text, but the rows of {ref} ({target.kind}) are token ids"
                yield Problem(where, what, f'name the dataset that they were made from: "{source}"')

    def circles(self) -> Iterator[Problem]:
        """Of stages that refer to each other none can run first."""
        try:
            self.order()
        except CycleError as error:
            yield Problem("stages", "refer to each other in a circle: " + " → ".join(error.args[1]))

    def dump_yaml(self) -> str:
        """This recipe as YAML, every default written out; loading it gives an equal recipe."""
        return yaml12.dump(self.model_dump())


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
        _importable(Path(source).resolve().parent)
    refused = list(overridden(data, overrides))
    try:
        recipe = Recipe.model_validate(data)
        found = recipe.check()
    except ValidationError as error:
        found = problems(error, data, Recipe) + _sound_part(data)
    if found or refused:
        found.sort(key=lambda problem: line(problem, lines))
        changed = [override.partition("=")[0].strip() for override in overrides]
        raise RecipeError([*(located(problem, lines, str(source), changed) for problem in found), *refused])
    return recipe


def _sound_part(data: Mapping[str, Any]) -> list[Problem]:
    """What check() finds in those stages of a faulty recipe, and those parts of its faulty stages, that are sound."""
    written = data.get("stages")
    written = written if isinstance(written, Mapping) else {}
    stages: dict[str, Stage] = {}
    parts: dict[str, Component | Ref] = {}
    for name, stage in written.items():
        try:
            stages[str(name)] = Recipe(name="part", stages={name: stage}).stages[name]
        except ValidationError:  # reported already, with its place in the whole recipe
            parts |= sound(Stage, stage, f"stages.{name}")
    unbuilt = [str(name) for name in written if name not in stages]
    recipe = Recipe.model_construct(name="part", description="", stages=stages)
    refs = {path: part for path, part in parts.items() if isinstance(part, Ref)}
    found = recipe.check(unbuilt)
    for path, part in parts.items():
        if isinstance(part, Component):
            refs |= {f"{path}.{inner}": ref for inner, ref in part.refs()}
            found += _of_component(path, part)
    return found + list(recipe.reference_problems(refs, unbuilt))


def _of_component(path: str, component: Component) -> Iterator[Problem]:
    """What a component and all in it find wrong with themselves, under its dotted path."""
    for inner, part in (("", component), *component.children()):
        yield from (_under(f"{path}.{inner}".rstrip("."), problem) for problem in part.check())


def _importable(folder: Path) -> None:
    """Components of the user's own, `my_module:MyAugmenter`, may lie beside the recipe; installed packages go first."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(str(path), f"cannot be read: {error}")]) from error


def _under(prefix: str, problem: Problem) -> Problem:
    return Problem(f"{prefix}.{problem.where}".rstrip("."), problem.what, problem.mend)
