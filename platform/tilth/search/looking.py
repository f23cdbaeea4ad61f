"""What a search goes by, as far as it is known before anything runs: which rows are looked at, and what is measured."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from tilth.data.mix import Mix
from tilth.data.stage import Data
from tilth.errors import Problem
from tilth.kinds import KINDS
from tilth.problems import nearest
from tilth.search.measures import home
from tilth.search.runners import Packed

if TYPE_CHECKING:
    from tilth.recipe import Recipe, Stage
    from tilth.search.stage import Search

Kind = TypeVar("Kind", Mix, Data)
TEST = "test"
#: figures of time, which in a pack is that of all its trials
TIMES = ("seconds", "training_seconds", "tokens_per_second")
#: what every training stage measures, and what only some of them do; a name that resembles one of these is none
TRAINED = (
    *TIMES, "train_loss", "steps", "tokens", "learning_rate", "parameters.trainable", "parameters.total",
    "validation_loss", "best_step", "last_validation_loss", "reward_margin", "reward_accuracy", "reward_gain",
    "cosine", "conflicting", "answers exact_match", "answers rouge_l",
)  # fmt: skip
ALIKE = 0.8
#: whatever measures them, less of these is better; mode is max where nobody says so
LESS = (
    "seconds", "training_seconds", "train_loss", "validation_loss", "last_validation_loss", "perplexity",
    "bits_per_byte", "ece",
)  # fmt: skip


def measuring(search: Search, recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with the objectives of a search whose references hold."""
    for number, objective in enumerate(search.objectives):
        where = f"also.{number - 1}.metric" if number else "metric"
        name = home(search.target, objective.metric)
        if search.target not in recipe.part([name]).stages:
            yield Problem(where, f"{name} does not depend on {search.stage}", "name a stage that measures its result")
        yield from peeking(search, name, recipe.stages[name], where, number)
        figure = objective.metric.removeprefix(f"{name}/")
        if name == search.target and figure in TIMES and isinstance(search.runner, Packed):
            what = f"{figure} of a trial in a pack is the time of all trials in it"
            yield Problem(where, what, "set runner: {kind: one_by_one}, or leave it out")
        if objective.mode == "max" and figure.rpartition("/")[2] in LESS:
            mode = where.removesuffix("metric") + "mode"
            yield Problem(mode, f"is max, by which the most {figure} would win, and less of it is better", "use min")
        yield from _misspelt(where, name, figure, recipe.stages[name])
    if search.target not in {home(search.target, item.metric) for item in search.objectives}:
        yield from peeking(search, search.target, recipe.stages[search.target], "stage")


def peeking(search: Search, name: str, stage: Stage, where: str = "", only: int | None = None) -> Iterator[Problem]:
    """What the search would choose by, of this stage, that is measured on the test split; `only` by one objective."""
    objectives = search.objectives if only is None else search.objectives[only : only + 1]
    figures = [item.metric.removeprefix(f"{name}/") for item in objectives if home(search.target, item.metric) == name]
    what = _peeks(stage, figures) or (_picks(search, stage) if name == search.target else None)
    if what is not None:
        mend = "measure another split here, and test the winner by a stage behind the search"
        yield Problem(where, f"{name} {what} the test split, by which nothing may be chosen", mend)


def _peeks(stage: Any, figures: list[str]) -> str | None:
    """What of a stage's figures is measured on the test split."""
    if figures and TEST in (getattr(stage, "split", None), _validation(stage)):
        return "looks at"
    probed = [probe.name for probe in getattr(stage, "probes", ()) if getattr(probe, "split", None) == TEST]
    found = [name for name in probed if any(name in figure for figure in figures)]
    return f"probes {found[0]} on" if found else None


def _picks(search: Search, stage: Any) -> str | None:
    """What is ended or kept by the test split while the searched stage runs."""
    if _validation(stage) != TEST:
        return None
    if search.scheduler is not None:
        return "is compared with other trials on"
    return "keeps the weights that are best on" if stage.validation.keeps_best else None


def _validation(stage: Any) -> str | None:
    split: str | None = getattr(getattr(stage, "validation", None), "split", None)
    return split


def redrawn(stage: Stage, written: Stage) -> Iterator[Problem]:
    """A split that holds out other test rows than the recipe's: those of the one are learnt from in the other."""
    if isinstance(stage, Data) and isinstance(written, Data) and _held_out(stage) != _held_out(written):
        what = "holds out other rows for the test, so that trials would learn from rows that the winner is tested on"
        yield Problem("", what, "leave test, seed and stratify of a split as they are written")


def _held_out(data: Data) -> tuple[float, int, bool] | None:
    """What decides which rows are for the test; None where none are."""
    split = data.split
    return (split.test, split.seed, split.stratify) if split is not None and split.test else None


def _misspelt(where: str, name: str, figure: str, stage: Any) -> Iterator[Problem]:
    """A figure that a training stage does not measure, whose name is nearly that of one that it does."""
    if "optimisation" not in type(stage).model_fields or figure in TRAINED:
        return
    if stage.kind not in KINDS["stage"]:
        return  # whose figures are its own
    if figure.partition("/")[0] in ("loss", "weight", "rows") or figure.endswith(" change"):
        return  # of a task, or of a probe
    if difflib.get_close_matches(figure, TRAINED, n=1, cutoff=ALIKE):
        yield Problem(where, f"{name} measures no {figure!r}", nearest(figure, TRAINED))


def unknown_tasks(stage: Any, recipe: Recipe) -> Iterator[Problem]:
    """Tasks that a training stage weighs or samples and that the mixture behind its dataset has not."""
    tasks, known = getattr(stage, "tasks", None), _tasks(stage, recipe)
    if tasks is None or known is None:
        return
    for name in sorted(tasks.sampling.missing(known) | tasks.weighting.missing(known)):
        if name in known:
            yield Problem("", f"task {name} is left out", f"name each of {', '.join(sorted(known))}")
        else:
            yield Problem("", f"no task is called {name!r}", nearest(name, known))


def _tasks(stage: Any, recipe: Recipe) -> set[str] | None:
    """The tasks that are trained on, where a mixture of the recipe names them; other stages keep them as they are."""
    mix = _behind(stage, recipe, Mix)
    if mix is None:
        return None
    tasks = {task for task, ref in mix.data.items() if not _lacks(str(ref), getattr(stage, "split", "train"), recipe)}
    return tasks - set(mix.clusters)


def _lacks(ref: str, split: str, recipe: Recipe) -> bool:
    """Whether a dataset has no rows of a split, as its recipe alone tells: its sources are split, and none is it."""
    data = _behind(ref, recipe, Data)
    return data is not None and bool(data.sources) and split not in data.sources


def _behind(stage: Any, recipe: Recipe, kind: type[Kind]) -> Kind | None:
    """The stage of this kind that a stage, or "@stage", has its rows from, whatever changed them in between."""
    seen: set[str] = set()
    while not isinstance(stage, kind):
        ref = stage if isinstance(stage, str) else getattr(stage, "data", None)
        name = ref.removeprefix("@") if isinstance(ref, str) else ""
        if name not in recipe.stages or name in seen:
            return None
        seen.add(name)
        stage = recipe.stages[name]
    return stage
