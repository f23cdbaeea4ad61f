"""Trials on Ray Tune: several at once, each in an actor of its own, whose stages run on Ray Train.

Tune starts, watches and ends the actors. What is tried and who ends early is decided here as everywhere, and
recorded here: a search that is resumed hands Tune what was open and what is still to be asked.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from tilth import orphans, placing, room, ui
from tilth.cluster import interrupts_given_back, ray_ready
from tilth.errors import StorageError, TilthError
from tilth.search.bench import Bench, Outcome, over
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.nodes import Workers
    from tilth.runs import Step
    from tilth.search.trials import Trial, Trials

POLL_SECONDS = 0.5
#: What a trial takes beside its stages, which take their own; Tune knows no trial that takes nothing. No part of a CPU:
#: a stage that takes all of them would wait for that part for ever.
NEXT_TO_NOTHING = {"cpu": 0, "memory": 1}
TOLD = "told"
#: how often a trial whose process died is begun again
RETRIES = 2
#: characters of what Ray says of that
SAID = 400
#: trials at once where there is room for more: Tune, which looks after all of them in one loop, keeps up with so many
MOST = 1000
Given = TypeVar("Given")


def run(trials: Trials, bench: Bench, most: int | None) -> None:
    """Run every trial; StorageError where the disk failed one of them, which then stays open."""
    ray_ready()
    refuse_unplaceable(bench)
    desk = Desk(trials)
    kept = Store.at(bench.url).sub("tune")
    kept.remove()  # what a killed search has left; nobody else works here
    place = kept.sub(uuid.uuid4().hex[:8])
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(perform, bench=bench), NEXT_TO_NOTHING),
        tune_config=tune.TuneConfig(
            search_alg=Asking(desk),
            scheduler=Deciding(desk),
            num_samples=-1,
            max_concurrent_trials=most or at_once(bench),
            trial_dirname_creator=folder,
        ),
        run_config=tune.RunConfig(
            name="trials",
            verbose=0,
            # what stages raise never gets here: its process died, or its node went; it goes on from its checkpoints
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            **_storage(place),
        ),
    )
    try:
        # a trial that Tune has ended leaves the places of its stages' workers behind
        with interrupts_given_back(), orphans.given_back():
            tuner.fit()
    finally:
        place.remove()
    if desk.fault is not None:
        raise desk.fault


def refuse_unplaceable(bench: Bench, join_seconds: float = room.JOIN_SECONDS) -> None:
    """ClusterError where the nodes there can be have no room for a stage of a trial, whatever else runs."""
    for stage in bench.recipe.stages.values():
        for workers in stage.at_work:
            room.refuse_unplaceable(workers.each, workers.least, workers.labels, join_seconds)


def at_once(bench: Bench) -> int:
    """Trials that the nodes there can be hold at the same time, by the stage that takes the most of them.

    One that goes on with fewer workers is counted with all of them, and runs where there is less too.
    """
    found = [_copies(stage.at_work) for stage in bench.recipe.stages.values() if stage.at_work]
    return max(1, min(found, default=1))


def _copies(asked: Sequence[Workers]) -> int:
    """How often all of these workers find a place, at most MOST times."""
    nodes = [*placing.there(), *placing.startable(MOST, sum(workers.count for workers in asked))]
    return next((copies for copies in range(MOST) if not placing.together(asked, nodes)), MOST)


def folder(trial: Any) -> str:
    """Where Tune keeps what it knows of a trial; by default its values are part of the name, "/" and all."""
    return f"trial-{trial.config['number']:05d}"


def _storage(place: Store) -> dict[str, Any]:
    if place.is_local:
        return {"storage_path": place.path()}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {"storage_path": place.path(), "storage_filesystem": PyFileSystem(FSSpecHandler(place.fs))}


class Desk:
    """Between Tune and the trials: keeps those that run, by the number that stands in their config."""

    def __init__(self, trials: Trials) -> None:
        self.trials = trials
        self.running: dict[int, Trial] = {}
        self.fault: TilthError | None = None
        #: what Ray said of the last death of a trial's process
        self.died: dict[int, str] = {}

    def next(self) -> Trial | None:
        trial = self._noted(self.trials.next, None) if self.fault is None else None
        if trial is not None:
            self.running[trial.number] = trial
        return trial

    def take(self, number: int, told: Mapping[str, Any]) -> bool:
        """Take what a trial's process says; False where the trial is to end."""
        trial = self.running.get(number)
        if trial is None:
            return False
        if "fault" in told:
            self.fault = StorageError(told["fault"])
        elif "outcome" in told:
            self.tell(number, Outcome(**told["outcome"]))
        else:
            figures = [(step, dict(named)) for step, named in told["figures"]]
            if not self._noted(lambda: self.trials.report(trial, figures), True):
                self.tell(number, Outcome(stopped=True))
        return number in self.running

    def tell(self, number: int, outcome: Outcome) -> None:
        trial = self.running.pop(number, None)
        if trial is not None and self.fault is None:
            self._noted(lambda: self.trials.tell(trial, outcome), None)

    def _noted(self, act: Callable[[], Given], otherwise: Given) -> Given:
        """Tune would take an error of ours for one of the trial: it is kept, and raised once Tune has ended."""
        try:
            return act()
        except TilthError as error:
            self.fault = error
            return otherwise

    def __deepcopy__(self, memo: Any) -> Desk:
        return self

    def __reduce__(self) -> Any:
        """Tune saves its own state now and then; ours lies with the trials, and nothing is restored from Tune's."""
        return Desk, (None,)


class Asking(Searcher):  # type: ignore[misc]
    """Hands Tune the next trial."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk = desk
        self.numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        trial = self.desk.next()
        if trial is None:
            return Searcher.FINISHED
        self.numbers[trial_id] = trial.number
        return {"number": trial.number, "values": trial.values}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Of a trial that ended in its process the scheduler has told already; one that died for good ends here."""
        if error and (number := self.numbers.get(trial_id)) is not None:
            why = f"its process died {RETRIES + 1} times: {self.desk.died.get(number, 'nobody says why')}"
            self.desk.tell(number, Outcome(error=why))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see `Desk.__reduce__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `Desk.__reduce__`."""


class Deciding(FIFOScheduler):  # type: ignore[misc]
    """Takes what trials report, and ends those that are to end."""

    _supports_buffered_results = False

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk = desk

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if TOLD not in result:
            return str(self.CONTINUE)
        going = self.desk.take(trial.config["number"], json.loads(result[TOLD]))
        return str(self.CONTINUE if going and self.desk.fault is None else self.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Of every death, also of those after which Tune begins the trial again."""
        number = trial.config["number"]
        said = Path(trial.error_file).read_text() if trial.error_file else ""
        self.desk.died[number] = " ".join(said.rpartition("Failure #")[2].split())[:SAID]
        ui.reporter().say(f"trial {number}: its process died: {self.desk.died[number]}")


def perform(config: dict[str, Any], bench: Bench) -> None:
    """One trial, in Tune's actor: its stages run in a thread, while this one tells what they measure and keeps time."""
    steps: list[Step] = []
    outcomes: list[Outcome] = []
    faults: list[TilthError] = []

    @contextmanager
    def watched(step: Step) -> Iterator[None]:
        steps.append(step)
        yield

    def attempt() -> None:
        try:
            outcomes.append(bench.attempt(config["values"], watched))
        except TilthError as error:
            faults.append(error)

    thread = threading.Thread(target=attempt, daemon=True, name="tilth-trial")
    thread.start()
    end = None if bench.limit is None else time.monotonic() + bench.limit
    seen = 0
    while thread.is_alive() and (end is None or time.monotonic() < end):
        thread.join(POLL_SECONDS)
        figures = list(steps[0].stage.course(steps[0].store)) if steps and not steps[0].reused else []
        if len(figures) > seen and thread.is_alive():
            seen = len(figures)
            tell({"figures": figures})
    if faults:
        tell({"fault": str(faults[0])})
    else:
        tell({"outcome": asdict(outcomes[0] if outcomes else Outcome(error=over(bench)))})


def tell(told: dict[str, Any]) -> None:
    """As text: Tune takes nested results apart before a scheduler sees them."""
    tune.report({TOLD: json.dumps(told)})
