"""What each Ray Train worker of a pack does: it trains the pack, and asks the search by the desk."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from itertools import count
from typing import Any

import ray
import torch.distributed as distributed

from tilth.errors import StageError, TilthError
from tilth.train.packs.over_workers import Begin, Broke, Next, Plan
from tilth.train.packs.pack import pack
from tilth.trials import Outcome, Report, Trial


def run(config: dict[str, Any]) -> None:
    """Called on every worker: all of them go through the same trials.

    What Tilth raises of all of them ends the pack; what else ends a worker has Ray Train start all of them anew.
    """
    rank = Rank(config["plan"], config["desk"])
    try:
        for outcome in pack(rank.trials(), rank.plan.places, rank.judge):
            rank.ended(outcome)
    except TilthError as error:
        rank.ask(Broke(error))
        raise


class Rank:
    """One worker among the others; rank 0 asks, and tells them what it is told."""

    def __init__(self, plan: Plan, desk: Any) -> None:
        self.plan, self.desk = plan, desk
        self.number, self.world = distributed.get_rank(), distributed.get_world_size()
        self._asked = count()
        #: which of the groups of workers it belongs to that were started, one after another
        self.group: str = self._told(uuid.uuid4().hex)
        self.ask(Begin(ray.get_runtime_context().current_actor))
        distributed.barrier()  # a new group is given first what was begun: all of it must be known as new before

    def ask(self, what: Any) -> Any:
        return ray.get(self.desk.ask.remote((self.group, self.number, next(self._asked)), what))

    def judge(self, report: Report) -> bool:
        """Asked on rank 0 alone, which tells the others."""
        return bool(self.ask(report))

    def trials(self) -> Iterator[Trial]:
        for number in count():
            trial: Trial | None = self.ask(Next()) if self.number == 0 else None
            self._meet(number)
            if (trial := self._told(trial)) is None:
                return
            yield trial

    def ended(self, outcome: Outcome) -> None:
        """Tell what came of a trial, once it has ended on all workers.

        Where it failed on this one alone the others wait for it in their step of the trial, and nothing that all have
        to take part in would come to an end.
        """
        failed = bool(outcome.why) and not outcome.stopped
        if not self._meet(outcome.trial, self.plan.alike if failed else None):
            raise StageError(f"packs: trial {outcome.trial} failed on worker {self.number} alone: {outcome.why}")
        distributed.barrier()  # raises where it was the connection that failed, which is no trial's fault
        if self.number == 0:
            self.ask(outcome)
        self._meet((outcome.trial, "told"))  # the search may evaluate it for hours

    def _meet(self, what: Any, seconds: float | None = None) -> bool:
        """Wait for the others at the desk: the search may take hours over an answer, longer than a group waits."""
        found: bool = ray.get(self.desk.meet.remote((self.group, what), self.world, seconds))
        return found

    def _told(self, what: Any) -> Any:
        """What rank 0 has."""
        said = [what]
        distributed.broadcast_object_list(said)
        return said[0]
