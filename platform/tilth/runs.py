"""A run: a directory with the resolved recipe and one artifact per finished stage, written last.

    RUN/recipe.yaml                          the recipe of the last run, every default written out
    RUN/plan.json                            each stage of that run: reused or run, and why
    RUN/stages/NAME/FINGERPRINT/…            what the stage wrote
    RUN/stages/NAME/FINGERPRINT/artifact.json   written last: where it stands, the stage is done
    RUN/report.html                          what happened, for people
    RUN/.gitignore                           of a local run: it is neither committed nor sent along with a job

A stage's fingerprint is the hash of its identity: parameters that decide the result, the content of its
inputs and models, the version of its code. Workers, devices, micro-batches and paths are not part of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tilth import content, ui
from tilth.changes import changes
from tilth.config import ModelName, Ref, digest, identity
from tilth.errors import StageError, StorageError
from tilth.lock import LOCK, exclusive, in_turn, refuse_overtaken
from tilth.recipe import MEASURED, PROBE, Recipe, Stage, load
from tilth.storage import Store

ARTIFACT = "artifact.json"
_PACKAGES = ("tilth", "ray", "torch", "transformers", "trl", "peft", "deepspeed", "vllm")


@dataclass(frozen=True)
class Artifact:
    """What a finished stage leaves: where it lies, what it counts and measures, and what it came from."""

    stage: str
    kind: str
    produces: str
    fingerprint: str
    store: Store
    identity: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    #: what the stage left, by name: bytes
    files: dict[str, int] = field(default_factory=dict)

    def save(self) -> None:
        """Write `artifact.json`: the moment at which the stage is done."""
        self.store.write_json(ARTIFACT, {key: value for key, value in asdict(self).items() if key != "store"})

    @staticmethod
    def read(store: Store) -> Artifact | None:
        """The artifact under `store`, None where the stage did not finish."""
        return store.read_as(ARTIFACT, lambda data: Artifact(store=store, **data))

    def damage(self) -> str | None:
        """What of its files is gone or has another size, None where all is there; nothing is read."""
        found = _left(self.store)
        for name, size in self.files.items():
            if name not in found:
                return f"{name} is missing"
            if found[name] != size:
                return f"{name} has {found[name]:,} bytes, not {size:,}"
        return None


@dataclass(frozen=True)
class Out:
    """Where one stage works: its own directory, named by its fingerprint."""

    stage: str
    kind: str
    produces: str
    fingerprint: str
    identity: dict[str, Any]
    store: Store
    #: what the stage stands in, for one that runs others of the same recipe
    recipe: Recipe | None = None
    run: Run | None = None
    #: the identity that the fingerprint took of each model named
    pins: Mapping[str, str] = field(default_factory=dict)

    def artifact(
        self,
        metrics: Mapping[str, Any] | None = None,
        counts: Mapping[str, Any] | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """The artifact to return from `Stage.run`."""
        return Artifact(
            self.stage,
            self.kind,
            self.produces,
            self.fingerprint,
            self.store,
            self.identity,
            metrics=dict(metrics or {}),
            counts=dict(counts or {}),
            detail=dict(detail or {}),
        )


@dataclass(frozen=True)
class Step:
    """One stage of a plan: what will happen to it, and why."""

    name: str
    stage: Stage
    fingerprint: str
    identity: dict[str, Any]
    reused: bool
    why: str
    store: Store
    recipe: Recipe
    run: Run
    #: it was finished and something of it is gone: what is left must not be taken for the whole
    damaged: bool = False
    #: the identity of each model named
    pins: Mapping[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Out:
        return Out(
            self.name, self.stage.kind, self.recipe.produces(self.name), self.fingerprint, self.identity, self.store,
            self.recipe, self.run, self.pins,
        )  # fmt: skip


class Run:
    """A run directory: plan a recipe against it, execute it, look at what it holds."""

    def __init__(self, out: str | Path | Store) -> None:
        self.store = out if isinstance(out, Store) else Store.at(out)

    def plan(self, recipe: Recipe) -> list[Step]:
        """Every stage in order, with whether it is reused and why. Reads, never writes."""
        steps: dict[str, Step] = {}
        for name in recipe.order():
            steps[name] = self._step(recipe, name, steps)
        return list(steps.values())

    def _step(self, recipe: Recipe, name: str, before: Mapping[str, Step]) -> Step:
        def known(value: str) -> Any:
            if isinstance(value, Ref):
                return {value: before[value.stage].fingerprint}
            found = content.identity_of(value)
            return pins.setdefault(value, found) if isinstance(value, ModelName) else found

        def step(reused: bool, why: str, damaged: bool = False) -> Step:
            return Step(name, stage, fingerprint, parts, reused, why, store, recipe, self, damaged, pins)

        stage, pins = recipe.stages[name], dict[str, str]()
        parts: dict[str, Any] = identity(stage, known)
        fingerprint = digest(parts)
        store = self.store.sub(f"stages/{name}/{fingerprint[:16]}")
        if (artifact := Artifact.read(store)) is not None:
            if damage := artifact.damage():
                return step(False, f"it was finished, but {damage}", damaged=True)
            return step(True, "its fingerprint matches a finished stage")
        return step(False, self._why(name, parts, store))

    def _why(self, name: str, parts: dict[str, Any], store: Store) -> str:
        if set(store.list()) - {PROBE}:
            return "it was begun with this fingerprint and not finished: it resumes"
        if not (earlier := self.artifacts(name)):
            return "it has not run here yet"
        # what sets it apart from the finished version that is most like it
        nearest = min((list(changes(item.identity, parts)) for item in reversed(earlier)), key=len)
        return "; ".join(dict.fromkeys(nearest)) or "code changed"

    def artifact(self, step: Step, ref: Ref) -> Artifact | None:
        """What a step's "@stage" refers to, None where that is not finished."""
        (fingerprint,) = {value[ref] for value in _mappings(step.identity) if ref in value}
        return Artifact.read(self.store.sub(f"stages/{ref.stage}/{fingerprint[:16]}"))

    def artifacts(self, name: str) -> list[Artifact]:
        """Every finished version of a stage, oldest first."""
        root = self.store.sub(f"stages/{name}")
        found = (Artifact.read(root.sub(fingerprint)) for fingerprint in root.list())
        return sorted((item for item in found if item is not None), key=lambda item: item.created)

    def execute(self, recipe: Recipe) -> dict[str, Artifact]:
        """Run what is not done yet; returns every stage's artifact. RunLocked when the directory is in use."""
        from tilth.cluster import session

        with exclusive(self.store), session(self.store):
            steps = self.plan(recipe)
            self._record(recipe, steps)
            done: dict[str, Artifact] = {}
            for step in steps:
                if step.reused:
                    ui.reporter().say(f"{step.name}: reused", event="reused", stage=step.name)
                done[step.name] = self._take(step, done)
            return done

    def build(self, recipe: Recipe, names: Iterable[str]) -> dict[str, Artifact]:
        """The artifacts of these stages and of all that they build on; runs what is not done.

        For a stage that runs others while its own run holds the directory: that run's recipe and plan stay what they
        are, and where two want the same stage at once, it runs once.
        """
        done: dict[str, Artifact] = {}
        for step in self.plan(recipe.part(names)):
            with in_turn(self.store.sub(f"locks/{step.name}-{step.fingerprint[:16]}")):
                done[step.name] = self._take(step, done)
        return done

    def _take(self, step: Step, done: Mapping[str, Artifact]) -> Artifact:
        """The step's artifact, from storage if it lies there whole by now."""
        inputs = {str(ref): done[ref.stage] for _, ref in step.stage.refs()}
        artifact = Artifact.read(step.store)
        if artifact is None or (step.damaged and artifact.damage()):
            return self._execute(step, inputs)
        step.stage.judge(artifact, inputs)
        return artifact

    def _record(self, recipe: Recipe, steps: Sequence[Step]) -> None:
        if self.store.is_local and not set(self.store.list()) - {LOCK}:  # never in a directory that was there before
            self.store.write(".gitignore", b"*\n")
        self.store.write("recipe.yaml", recipe.dump_yaml().encode())
        rows = [{"stage": s.name, "fingerprint": s.fingerprint, "reused": s.reused, "why": s.why} for s in steps]
        self.store.write_json("plan.json", rows)

    def _execute(self, step: Step, inputs: Mapping[str, Artifact]) -> Artifact:
        ui.reporter().say(f"{step.name}: {step.stage.kind} ({step.why})", event="start", stage=step.name)
        if step.damaged:
            refuse_overtaken()
            step.store.remove(ARTIFACT)
            step.store.remove()
        start = time.monotonic()
        return self.finish(step, step.stage.run(step.out, inputs), time.monotonic() - start)

    def finish(self, step: Step, artifact: Artifact, seconds: float) -> Artifact:
        """Make what the stage of a step returned its finished artifact."""
        if artifact.fingerprint != step.fingerprint:
            raise StageError(f"{step.name}: run() must return out.artifact(…)")
        measured = {
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
            "seconds": round(seconds, 2),
            "versions": _versions(),
            "files": _left(step.store),
        }
        finished = Artifact(**{**vars(artifact), **measured})
        refuse_overtaken()
        finished.save()
        ui.reporter().say(
            f"{step.name}: done in {finished.seconds:.1f} s", event="done", stage=step.name, metrics=finished.metrics
        )
        return finished

    def current(self) -> dict[str, Artifact]:
        """The artifacts of the last run's plan that are finished, by stage name, in order."""

        def directories(plan: Any) -> dict[str, Store]:
            return {row["stage"]: self.store.sub(f"stages/{row['stage']}/{row['fingerprint'][:16]}") for row in plan}

        stores = self.store.read_as("plan.json", directories)
        if stores is None:
            raise StorageError(f"{self.store.url} holds no run: there is no plan.json; give the --out of a tilth run")
        return {name: found for name, store in stores.items() if (found := Artifact.read(store)) is not None}


def run(recipe: Recipe | str | Path | Mapping[str, Any], out: str | Path, *overrides: str) -> dict[str, Artifact]:
    """Check and execute a recipe under `out`; returns every stage's artifact by name."""
    return Run(out).execute(load(recipe, overrides))


def _left(store: Store) -> dict[str, int]:
    """The sizes of a stage's files, but for its ledger and for what programs keep under hidden names."""
    return {
        name: size
        for name, size in sorted(store.sizes().items())
        if name not in (ARTIFACT, PROBE, MEASURED)
        and not any(part.startswith(".") or part == "ledger" for part in name.split("/"))
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in plain data."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(item)
