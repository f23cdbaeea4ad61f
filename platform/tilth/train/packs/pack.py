"""Training a pack: as many trials at once as there are places, the next one whenever a place is free."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as distributed

from tilth.errors import ClusterError, StageError, StageStopped, StorageError, TilthError
from tilth.recipe import STOP
from tilth.runs import Artifact
from tilth.storage import full
from tilth.train import trace
from tilth.train.checkpoint import StoreLink
from tilth.train.job import FAILED
from tilth.train.launch import collected, finished, own_checkpoints
from tilth.train.packs.base import Base, twin
from tilth.train.packs.engine import ApartError, Engine
from tilth.train.packs.fit import alone
from tilth.train.packs.member import Backward, Forward, Member, Stopped
from tilth.train.packs.memory import exhausted
from tilth.train.preflight import prepare
from tilth.train.worker import train
from tilth.trials import CrowdedError, Judge, Outcome, TimeOverError, Trial


def pack(trials: Iterable[Trial], places: int, judge: Judge) -> Iterator[Outcome]:
    """Train `trials` in this process, `places` at once; each outcome as it comes. See `Stage.pack`.

    Under a process group every rank calls this with the same trials, as data-parallel workers do.
    """
    with tempfile.TemporaryDirectory(prefix="tilth-pack-") as rows:
        running = Pack(iter(trials), places, judge, Path(rows))
        try:
            while True:
                yield from running.admit()
                if not running.members:
                    return
                yield from running.step()
        finally:
            running.halt()


@dataclass
class Pack:
    """The trials that are trained at the moment, each held where it asks for the shared forward pass."""

    trials: Iterator[Trial]
    places: int
    judge: Judge
    rows: Path
    members: list[Member] = field(default_factory=list)
    _asked: dict[str, Forward] = field(default_factory=dict)
    _base: Base = field(default_factory=Base)
    _engine: Engine | None = None

    def admit(self) -> Iterator[Outcome]:
        """Fill the free places."""
        while len(self.members) < self.places and (trial := next(self.trials, None)) is not None:
            work = partial(_run, trial)
            member = Member(trial.name, self._base, self.judge, self.rows, work)
            self.members.append(member)
            yield from self._resume(member)

    def step(self) -> Iterator[Outcome]:
        """One micro-batch of every trial: the shared pass forward, each trial's loss, the shared pass backward."""
        asked = [self._asked.pop(member.name) for member in self.members]
        with _of_all(len(asked)):
            engine = self._shared()
            found = engine.forward([member.backbone for member in self.members], [one.given for one in asked])
        for member, outputs in zip(list(self.members), found, strict=True):
            yield from self._resume(member, outputs)
        with _of_all(len(asked)):
            engine.backward()
        for member in list(self.members):
            yield from self._resume(member)

    def halt(self) -> None:
        for member in self.members:
            member.turn.halt(Stopped())

    def _resume(self, member: Member, answer: Any = None) -> Iterator[Outcome]:
        """Let a trial run until it asks for something; one that has ended leaves its place."""
        try:
            asked = member.turn.resume(answer)
        except TimeOverError as error:
            error.trial = member.name
            raise
        if isinstance(asked, Future):
            self.members.remove(member)
            yield _outcome(member, asked)
        elif isinstance(asked, Forward):
            self._asked[member.name] = asked
        elif not isinstance(asked, Backward):
            raise TypeError(f"a trial asks for {type(asked).__name__}")

    def _shared(self) -> Engine:
        """The engine, made when the first trial has brought its model."""
        if self._engine is None:
            trainer = self.members[0].trainer
            # the Trainer has moved the weights that all share, but buffers in its own copy alone
            base = twin(self._base.first.base_model).to(trainer.args.device)
            self._engine = Engine(base, self._base.pad_free, trainer.args.bf16)
            self._engine.backbone.train()
            if trainer.args.gradient_checkpointing:
                self._engine.backbone.gradient_checkpointing_enable()
        return self._engine


@contextmanager
def _of_all(trials: int) -> Iterator[None]:
    """What work for all of them raises is no trial's own: CrowdedError where it is for memory, else StageError."""
    try:
        yield
    except Exception as error:
        if exhausted(error):
            what = f"packs: {trials} trials at once do not fit the device's memory; use fewer places"
            raise CrowdedError(what) from error
        raise StageError(f"packs: the pass of {trials} trials failed: {type(error).__name__}: {error}") from error


def _run(trial: Trial, member: Member) -> Artifact | None:
    """The stage as `Stage.run` would run it in this process, in a pack; the artifact is rank 0's."""
    stage: Any = trial.stage
    if (why := alone(stage)) is not None:
        raise ApartError(f"{trial.name}: {why}")
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    # adapters are small: what DeepSpeed would partition of them is not worth it
    whole = stage.model_copy(update={"scale": stage.scale.model_copy(update={"workers": 0, "deepspeed": None})})
    job = prepare(whole, trial.out, trial.inputs)
    if finished(job) is None:
        for name in (FAILED, STOP) if rank == 0 else ():
            job.out.remove(name)
        train(job, StoreLink(own_checkpoints(job), stage.checkpointing.keep, rank, world), member)
    made: Artifact | None = stage.made(trial.out, job, collected(job)) if rank == 0 else None
    return made


def _outcome(member: Member, ended: Future[Artifact | None]) -> Outcome:
    """What came of a trial; raises what is no trial's own: a disk that fails, memory that all of them fill."""
    error = ended.exception()
    if error is None:
        return Outcome(member.name, ended.result())
    if isinstance(error, Stopped):
        watch, step = member.trainer.watch, member.trainer.state.global_step
        watch.flush(step)
        if watch.link.rank == 0:
            trace.merge(watch.store, step)
        shutil.rmtree(Path(member.trainer.args.output_dir).parent, ignore_errors=True)
        return Outcome(member.name, why=f"stopped after step {step}", stopped=True)
    if isinstance(error, StageStopped):
        return Outcome(member.name, why=str(error), stopped=True)
    if isinstance(error, StorageError | ClusterError):
        raise error
    if full(error):
        raise StorageError(f"{member.name}: {error}") from error
    if exhausted(error):
        what = f"packs: trial {member.name} does not fit the device's memory beside the others; use fewer places"
        raise CrowdedError(what) from error
    if isinstance(error, TilthError):
        return Outcome(member.name, why=str(error), apart=isinstance(error, ApartError))
    if isinstance(error, Exception):  # of this trial alone: it is told, and the others go on
        return Outcome(member.name, why=f"{type(error).__name__}: {error}")
    raise error
