"""A stage to be searched: a known function instead of a training, in milliseconds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import ClassVar, Literal

from pydantic import Field

from stages import Number
from tilth.config import EXECUTION, Component, DatasetRef, ModelRef
from tilth.errors import StageError, StageStopped
from tilth.nodes import Workers
from tilth.recipe import STOP, Figures, Stage
from tilth.runs import Artifact, Out
from tilth.storage import Store
from tilth.trials import CrowdedError, Judge, Outcome, Packs, Report, TimeOverError, Trial


class Inner(Component):
    """Something nested, with a number and shares."""

    width: int = Field(1, ge=1, le=64, description="A whole number.")
    shares: dict[str, float] = Field(default_factory=dict, description="Shares that sum to 1.")


class Hill(Stage):
    """Leaves the height of a hill at (x, width), whose top is at (0.3, 8), plus noise by its seed."""

    produces: ClassVar[str] = "model"

    data: DatasetRef | None = Field(None, description="What it would learn.")
    x: float = Field(0.0, ge=-10, le=10, description="A number.")
    inner: Inner = Field(Inner(), description="More.")
    seed: int = Field(0, description="Seed of the noise.")
    noise: float = Field(0.0, ge=0, description="How much of it.")
    shape: Literal["round", "flat"] = Field("round", description="flat: every place is as high.")
    raises: float | None = Field(None, json_schema_extra=EXECUTION, description="Raises where x is above this.")
    hangs: float | None = Field(None, json_schema_extra=EXECUTION, description="Hangs where x is above this.")
    dies: float | None = Field(None, json_schema_extra=EXECUTION, description="Ends its process where x is above this.")
    steps: int = Field(0, ge=0, description="Steps, each with a figure.")
    pause: float = Field(0.0, ge=0, json_schema_extra=EXECUTION, description="Seconds of a step.")

    @property
    def height(self) -> float:
        if self.shape == "flat":
            return 1.0
        return 1 - (self.x - 0.3) ** 2 - ((self.inner.width - 8) / 64) ** 2

    @property
    def tells(self) -> tuple[str, ...]:
        return ("error",) if self.steps else ()

    def course(self, store: Store) -> Sequence[Figures]:
        return [(step, {"error": value}) for step, value in store.read_json("figures.json") or ()]

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        count = (out.store.read_json("begun.json") or 0) + 1
        out.store.write_json("begun.json", count)
        out.store.remove(STOP)
        if self.raises is not None and self.x > self.raises:
            raise ValueError(f"x is {self.x:.3f}")
        if self.dies is not None and self.x > self.dies:
            os._exit(1)
        if self.hangs is not None and self.x > self.hangs:
            time.sleep(3600)
        told: list[tuple[int, float]] = []
        for step in range(1, self.steps + 1):
            told.append((step, 2 - self.height + 1 / step))
            out.store.write_json("figures.json", told)
            time.sleep(self.pause)
            if out.store.exists(STOP):
                raise StageStopped("asked to stop")
        luck = self.noise * (hash((self.seed, round(self.x, 6))) % 1000 / 1000 - 0.5)
        out.store.write("weights", f"{self.x}".encode())
        return out.artifact(
            {"height": self.height + luck}, {"rows": 1}, {"parameters": {"trainable": self.inner.width}}
        )


class Frail(Hill):
    """Fails with every seed above 1."""

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        if self.seed > 1:
            raise ValueError(f"its seed is {self.seed}")
        return super().run(out, inputs)


class Range(Hill):
    """Hills of one width can be climbed together, a step of each in turn."""

    @property
    def tells(self) -> tuple[str, ...]:
        return ("validation_loss",)

    @classmethod
    def packs(cls, stages: Mapping[str, Stage], places: int, room: float | None = None) -> Packs:
        groups: dict[int, list[str]] = {}
        for name, stage in stages.items():
            assert isinstance(stage, Range)
            groups.setdefault(stage.inner.width, []).append(name)
        together = tuple(tuple(names) for names in groups.values() if len(names) > 1)
        return Packs(together, {names[0]: "it has a width of its own" for names in groups.values() if len(names) == 1})

    @classmethod
    def pack(cls, trials: Iterable[Trial], places: int, judge: Judge) -> Iterator[Outcome]:
        waiting, active = iter(trials), dict[str, tuple[Trial, int]]()
        while True:
            while len(active) < places and (trial := next(waiting, None)) is not None:
                active[trial.name] = (trial, 0)
            if not active:
                return
            for name, (trial, step) in list(active.items()):
                stage = trial.stage
                assert isinstance(stage, Range)
                trial.out.store.write_json("company.json", len(active))
                active[name] = (trial, step + 1)
                error = 2 - stage.height + 1 / (step + 1)
                if not judge(Report(name, step + 1, stage.steps, error, 1, 0.0, error)):
                    del active[name]
                    yield Outcome(name, stopped=True)
                elif step + 1 == stage.steps:
                    del active[name]
                    yield cls._done(trial)

    @classmethod
    def _done(cls, trial: Trial) -> Outcome:
        try:
            return Outcome(trial.name, trial.stage.run(trial.out, trial.inputs))
        except ValueError as error:
            return Outcome(trial.name, why=f"ValueError: {error}")


class Crowded(Range):
    """Memory is full before a pack holds all that it was given: it takes some of them and ends."""

    taken: ClassVar[int] = 2

    @classmethod
    def pack(cls, trials: Iterable[Trial], places: int, judge: Judge) -> Iterator[Outcome]:
        list(islice(trials, cls.taken))
        raise StageError("packs: they do not fit the device's memory")
        yield


class Full(Crowded):
    """Memory is full before a pack holds any."""

    taken: ClassVar[int] = 0


class Loose(Range):
    """With their models loaded it turns out that these share no pass."""

    @classmethod
    def pack(cls, trials: Iterable[Trial], places: int, judge: Judge) -> Iterator[Outcome]:
        for trial in trials:
            yield Outcome(trial.name, why="its model draws at random", apart=True)


class Slow(Range):
    """Each trial is set up for a second as it enters the pack."""

    @classmethod
    def pack(cls, trials: Iterable[Trial], places: int, judge: Judge) -> Iterator[Outcome]:
        def entering() -> Iterator[Trial]:
            for trial in trials:
                time.sleep(1)
                yield trial

        yield from super().pack(entering(), places, judge)


class Cramped(Range):
    """Memory holds two at once."""

    @classmethod
    def pack(cls, trials: Iterable[Trial], places: int, judge: Judge) -> Iterator[Outcome]:
        if places > 2:
            list(islice(trials, places))
            raise CrowdedError("packs: they do not fit the device's memory at once")
        yield from super().pack(trials, places, judge)


class Narrow(Range):
    """The same, and it is known beforehand."""

    @classmethod
    def packs(cls, stages: Mapping[str, Stage], places: int, room: float | None = None) -> Packs:
        found = super().packs(stages, places, room)
        return Packs(found.together, found.apart, at_once=(2,) * len(found.together))


class Stuck(Range):
    """The pass that all share hangs."""

    @classmethod
    def pack(cls, trials: Iterable[Trial], places: int, judge: Judge) -> Iterator[Outcome]:
        list(islice(trials, places))
        time.sleep(3600)
        yield


class Wide(Hill):
    """Takes every CPU of the cluster while it runs, as workers do that train."""

    @property
    def at_work(self) -> tuple[Workers, ...]:
        return (Workers({"CPU": 1.0}, 2),)

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        import ray
        from ray.util import placement_group, remove_placement_group

        if not ray.is_initialized():
            return super().run(out, inputs)
        group = placement_group([{"CPU": 1.0}] * int(ray.cluster_resources()["CPU"]))
        try:
            if not group.wait(30):
                raise ValueError("there is no room")
            return super().run(out, inputs)
        finally:
            remove_placement_group(group)


class Stalled(Range):
    """A trial's own work hangs where x is above `hangs`."""

    @classmethod
    def pack(cls, trials: Iterable[Trial], places: int, judge: Judge) -> Iterator[Outcome]:
        for trial in (taken := list(islice(trials, places))):
            assert isinstance(trial.stage, Hill)
            if trial.stage.hangs is not None and trial.stage.x > trial.stage.hangs:
                try:
                    time.sleep(3600)
                except TimeOverError as error:
                    error.trial = trial.name
                    raise
        yield from super().pack(iter(taken), places, judge)


class Lazy(Number):
    """A number that takes for ever where it is above 2."""

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        if self.value > 2:
            time.sleep(3600)
        return super().run(out, inputs)


class Tardy(Number):
    """A number that takes its time."""

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        time.sleep(1.5)
        return super().run(out, inputs)


class Look(Stage):
    """Measures what a hill left."""

    model: ModelRef = Field(description="What is looked at.")
    split: str = Field("validation", description="Where.")
    hangs: float | None = Field(None, json_schema_extra=EXECUTION, description="Hangs where the hill is above this.")
    takes: float = Field(0.0, ge=0, json_schema_extra=EXECUTION, description="Seconds.")

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        model = inputs[self.model]
        if self.hangs is not None and model.metrics["height"] > self.hangs:
            time.sleep(3600)
        time.sleep(self.takes)
        return out.artifact({"hill/seen": 10 * model.metrics["height"]})
