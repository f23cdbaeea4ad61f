"""Ray actors that are alike and share what is asked, of which any may die."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from tilth import cluster, ui
from tilth.errors import StageError, TilthError
from tilth.train.ppo.placement import Placed

#: times that actors are started anew for one call
RESTARTS = 3
#: what tells that an actor is gone, or what it had answered
GONE = (RayActorError, OutOfMemoryError, ObjectLostError)


class Actors:
    """So many actors of one class; one that dies is started anew, and what it owed is asked again.

    Several threads may ask. StageError where an actor cannot start, or where they keep dying; an error of ours that one
    raises is raised here.
    """

    def __init__(self, what: str, placed: Placed, kind: type, given: tuple[Any, ...], count: int) -> None:
        self.what, self.options, self.kind, self.given = what, placed.options, kind, given
        #: told every new actor before anything else
        self.first: Callable[[Any], Any] = lambda actor: None
        self.closed, self._changing = False, threading.Lock()
        self.all = [self._start() for _ in range(count)]

    def _start(self) -> Any:
        actor = ray.remote(**self.options)(self.kind).remote(*self.given)
        self.first(actor)
        return actor

    def ask(self, count: int, call: Callable[[Any, list[int]], Any]) -> list[Any]:
        """The answers to `count` items, in order; `call(actor, places)` asks an actor for those at some places."""
        shares = [list(range(at, count, len(self.all))) for at in range(len(self.all))]
        found: dict[int, Any] = {}
        for _ in range(RESTARTS + 1):
            asked = list(self.all)
            calls = [(at, share, call(asked[at], share)) for at, share in enumerate(shares) if share]
            for at, share, answer in calls:
                try:
                    found.update(zip(share, _got(answer), strict=True))
                    shares[at] = []
                except GONE as error:
                    self._replace(at, asked[at], error, f"its {len(share)} items are asked again")
            if not any(shares):
                return [found[place] for place in range(count)]
        raise StageError(f"{self.what} actors died {RESTARTS + 1} times over one step; see their logs for why")

    def tell(self, call: Callable[[Any], Any]) -> None:
        """Have every actor do something; one that died is started anew."""
        asked = list(self.all)
        for at, done in enumerate([call(actor) for actor in asked]):
            try:
                _got(done)
            except GONE as error:
                self._replace(at, asked[at], error, "another takes its place")

    def _replace(self, at: int, gone: Any, error: RayError, then: str) -> None:
        """Another actor in the place of one that is gone, if it has none yet."""
        if why := cluster.never_begun(error):
            raise StageError(f"a {self.what} actor could not start: {why}") from error
        with self._changing:
            if self.closed:
                raise StageError(f"{self.what} actors are no longer there") from error
            if self.all[at] is gone:
                ui.reporter().say(f"a {self.what} actor died ({error}); {then}")
                self.all[at] = self._start()

    def ready(self) -> None:
        """Wait until all have started."""
        self.tell(lambda actor: actor.__ray_call__.remote(_pid))

    def pids(self) -> list[int]:
        """Processes of the actors."""
        found: list[int] = ray.get([actor.__ray_call__.remote(_pid) for actor in self.all])
        return found

    def close(self) -> None:
        with self._changing:
            self.closed = True
            for actor in self.all:
                ray.kill(actor)


def _pid(actor: Any) -> int:
    return os.getpid()


def _got(answer: Any) -> Any:
    """What was asked for; an error of ours as it was raised, without Ray's account of where."""
    try:
        return ray.get(answer)
    except RayTaskError as error:
        if isinstance(error.cause, TilthError):
            raise error.cause from error
        raise
