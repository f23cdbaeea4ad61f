"""Trials: what is asked, what came of it, and their record on storage, which a killed search goes on from."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tilth import ui
from tilth.errors import StageError
from tilth.search.bench import Bench, Outcome
from tilth.search.measures import measured
from tilth.search.places import drawn, grid
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.recipe import Figures
    from tilth.search.stage import Search
    from tilth.search.study import Study

State = Literal["running", "complete", "pruned", "failed"]
MOST_POINTS = 200


@dataclass
class Trial:
    """One trial as it is recorded. `params` and `distributions` are the numbers behind `values`, for the sampler."""

    number: int
    values: dict[str, Any]
    params: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)
    state: State = "running"
    #: objective: its figure
    scores: dict[str, float] = field(default_factory=dict)
    #: (step, figure that the scheduler compares)
    reported: list[tuple[int, float]] = field(default_factory=list)
    #: the scheduler has said that it is not to go on, or its figure was no number, as `error` then says
    ended: bool = False
    #: what the scheduler keeps of it
    marks: dict[str, Any] = field(default_factory=dict)
    #: (step, figure) for its curve
    curve: list[tuple[int, float]] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0


class Journal:
    """A file for each trial, written whole whenever something is known of it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def read(self) -> list[Trial]:
        """Every trial that was asked, in order; those behind one that is gone are asked again, as they were before."""
        found = (self.store.read_as(name, lambda data: Trial(**data)) for name in self.store.list())
        known = sorted((trial for trial in found if trial is not None), key=lambda trial: trial.number)
        return [trial for place, trial in enumerate(known) if trial.number == place]

    def write(self, trial: Trial) -> None:
        self.store.write_json(f"{trial.number:05d}.json", asdict(trial))


class Trials(Protocol):
    """What a runner works on."""

    @property
    def looks(self) -> bool:
        """Whether `report` may end a trial."""

    def next(self) -> Trial | None:
        """The next trial to run; None where there is none, or none until others have finished."""

    def report(self, trial: Trial, figures: Sequence[Figures]) -> bool:
        """Take what a running trial measured so far; False where it is to end."""

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Take what came of a trial."""


class Recorded:
    """Trials whose outcome is scored and written down."""

    def __init__(self, search: Search, bench: Bench, journal: Journal, title: str) -> None:
        self.search, self.bench, self.journal, self.title = search, bench, journal, title
        self.trials = journal.read()
        #: begun by a search that did not end, and not yet taken up again
        self.waiting = [trial for trial in self.trials if trial.state == "running"]
        self._begun: dict[int, float] = {}

    def take(self, trial: Trial) -> Trial:
        """The trial, about to run."""
        self._begun[trial.number] = time.monotonic()
        ui.reporter().say(f"{self.title} {trial.number}: {shown(trial.values)}", event="trial", number=trial.number)
        return trial

    @property
    def looks(self) -> bool:
        return False

    def report(self, trial: Trial, figures: Sequence[Figures]) -> bool:
        return True

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        trial.seconds += round(time.monotonic() - self._begun[trial.number], 2)
        self._score(trial, outcome)
        told = ", ".join(f"{name} {value:.4g}" for name, value in trial.scores.items())
        ui.reporter().say(
            f"{self.title} {trial.number}: {trial.error or told or trial.state}", event="told", **asdict(trial)
        )
        self.journal.write(trial)

    def _score(self, trial: Trial, outcome: Outcome) -> None:
        trial.made, trial.error = outcome.made, outcome.error or (trial.error if outcome.stopped else None)
        trial.curve = list(trial.reported)
        if outcome.stopped or trial.error is not None:
            trial.state = "pruned" if trial.error is None else "failed"
            return
        try:
            trial.scores = scores(self.search, self.bench, outcome.made)
        except StageError as error:
            trial.state, trial.error = "failed", str(error)
            return
        trial.state = "complete"
        trial.curve = curve(self.search, self.bench, outcome.made)


class Asked(Recorded):
    """Trials that the searcher asks for, as many as the search wants."""

    def __init__(self, search: Search, bench: Bench, journal: Journal, study: Study) -> None:
        super().__init__(search, bench, journal, "trial")
        self.study = study
        self.points = grid(bench.recipe, search.target, search.space) if search.searcher.lists else None
        self.wanted = search.count(bench.recipe)
        study.restore(self.trials)

    def next(self) -> Trial | None:
        while self.waiting:
            trial = self.take(self.waiting.pop(0))
            if not trial.ended:
                return trial
            self.tell(trial, Outcome(stopped=True))
        if len(self.trials) >= self.wanted:
            return None
        trial = self._ask(len(self.trials))
        self.trials.append(trial)
        self.journal.write(trial)
        return self.take(trial)

    def _ask(self, number: int) -> Trial:
        search = self.search
        point = self.points[number] if self.points is not None else None
        fixed = None if point is None else _params(search, point)
        values, params, distributions = self.study.ask(
            number, fixed, lambda draws: drawn(self.bench.recipe, search.target, search.space, draws)
        )
        return Trial(number, values, params, distributions)

    @property
    def looks(self) -> bool:
        return self.search.scheduler is not None

    def report(self, trial: Trial, figures: Sequence[Figures]) -> bool:
        scheduler = self.search.scheduler
        if scheduler is None or trial.ended:
            return not trial.ended
        last = trial.reported[-1][0] if trial.reported else -1
        new = [(step, named[scheduler.metric]) for step, named in figures if step > last and scheduler.metric in named]
        return all(self._note(trial, step, value) for step, value in new)

    def _note(self, trial: Trial, step: int, value: float) -> bool:
        """A figure on the way, by which the scheduler may end the trial; one that is no number does end it."""
        if math.isfinite(value):
            trial.reported.append((step, value))
            trial.ended = not self.study.report(trial, step, value)
        else:
            metric = self.search.scheduler.metric if self.search.scheduler else "its figure"
            trial.ended, trial.error = True, f"{metric} is {value} after step {step}"
        self.journal.write(trial)
        return not trial.ended

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        super().tell(trial, outcome)
        self.study.tell(trial)

    def take_back(self) -> None:
        """Record every failed trial as begun and not ended, so that the next search over this journal runs it again."""
        for trial in self.trials:
            if trial.state == "failed":
                trial.state, trial.error, trial.ended = "running", None, False
                self.journal.write(trial)


class Listed(Recorded):
    """Trials that are known beforehand."""

    def __init__(self, search: Search, bench: Bench, journal: Journal, values: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(search, bench, journal, "repeat")
        known = len(self.trials)
        self.trials += [Trial(number, dict(item)) for number, item in enumerate(values) if number >= known]
        self.waiting = [trial for trial in self.trials if trial.state == "running"]

    def next(self) -> Trial | None:
        if not self.waiting:
            return None
        trial = self.take(self.waiting.pop(0))
        self.journal.write(trial)
        return trial


def _params(search: Search, point: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that a sampler would have drawn for a point of a grid."""
    return {name: raw for path, value in point.items() for name, raw in search.space[path].drawn(path, value).items()}


def scores(search: Search, bench: Bench, made: Mapping[str, str]) -> dict[str, float]:
    """Every objective's figure; StageError where one is missing or no number."""
    artifacts = bench.artifacts(made)
    return {item.metric: measured(artifacts, search.target, item.metric) for item in search.objectives}


def curve(search: Search, bench: Bench, made: Mapping[str, str]) -> list[tuple[int, float]]:
    """(step, figure) of the searched stage: what a scheduler compares, else its loss; thinned out for a picture."""
    stage = bench.recipe.stages[search.target]
    told = stage.course(bench.store(search.target, made[search.target]))
    wanted = search.scheduler.metric if search.scheduler else next(iter(stage.tells), "loss")
    points = [(step, named[wanted]) for step, named in told if wanted in named and math.isfinite(named[wanted])]
    return points[:: max(1, -(-len(points) // MOST_POINTS))]


def shown(values: Mapping[str, Any]) -> str:
    """Values of a trial in one line."""
    return ", ".join(f"{path} {_short(value)}" for path, value in values.items()) or "as written"


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
