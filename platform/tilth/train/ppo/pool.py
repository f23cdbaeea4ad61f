"""Rollouts in Ray actors of their own: weights are sent to all of them, prompts are shared out, and none is lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError

from tilth import ui
from tilth.errors import StageError
from tilth.train.ppo.policy import Policy
from tilth.train.ppo.rollouts import Ask, Generating, Home, Rollouts, Sample
from tilth.train.ppo.source import Source

#: numbers of weights in one message to the actors
BUCKET = 32 * 2**20
#: times that an actor is started anew for one call
RESTARTS = 3


class Mirror:
    """One actor: a copy of the policy that is sent its weights, and the generator that would serve it in place."""

    def __init__(self, config: Rollouts, source: Source, max_length: int, half: bool) -> None:
        self.policy = Policy(source.model("cuda" if config.gpus else "cpu"), mirror=True, half=half)
        self.weights = self.policy.learnt()
        self.generating: Generating = config.open(Home(self.policy, source.tokenizer(), source, max_length))

    def take(self, bucket: dict[str, torch.Tensor], version: int) -> None:
        """Put weights in their places; the last bucket of a version is the one after which `generate` is called."""
        with torch.no_grad():
            for name, weight in bucket.items():
                self.weights[name].copy_(weight)
        self.policy.version = version

    def generate(self, asks: Sequence[Ask]) -> list[Sample]:
        self.generating.sync()
        return self.generating.generate(asks)

    def pid(self) -> int:
        return os.getpid()


class Pool:
    """Implements `tilth.train.ppo.rollouts.Generating` by actors, each with a share of the prompts."""

    concurrent = True

    def __init__(self, config: Rollouts, home: Home, actors: int) -> None:
        self.policy, self.version = home.policy, -1
        in_place = config.model_copy(update={"placement": "colocate"})
        self.make = (in_place, home.source, home.max_length, home.policy.half)
        self.resources = {**config.nodes.options(config.cpus, config.gpus), "scheduling_strategy": "DEFAULT"}
        self.buckets: list[Any] = []
        self.actors = [self._start() for _ in range(actors)]

    def _start(self) -> Any:
        actor = ray.remote(**self.resources)(Mirror).remote(*self.make)
        for bucket in self.buckets:
            actor.take.remote(bucket, self.version)
        return actor

    def generate(self, asks: Sequence[Ask]) -> list[Sample]:
        """The samples in order; those that died with their actor are drawn again by a new one, to the same tokens."""
        shares = [list(range(at, len(asks), len(self.actors))) for at in range(len(self.actors))]
        found: dict[int, Sample] = {}
        for _ in range(RESTARTS + 1):
            calls = [
                (at, share, self.actors[at].generate.remote([asks[place] for place in share]))
                for at, share in enumerate(shares) if share
            ]  # fmt: skip
            for at, share, call in calls:
                try:
                    found.update(zip(share, ray.get(call), strict=True))
                    shares[at] = []
                except RayActorError as error:
                    ui.reporter().say(f"a rollout actor died ({error}); its {len(share)} prompts are asked again")
                    self.actors[at] = self._start()
            if not any(shares):
                return [found[place] for place in range(len(asks))]
        raise StageError(f"rollout actors died {RESTARTS + 1} times over one step; see their logs for why")

    def sync(self) -> int:
        """Send every actor the policy's weights, several in one message; they are stored once for all of them."""
        if self.version == self.policy.version:
            return 0
        self.version = self.policy.version
        weights = {name: w.detach().cpu() for name, w in self.policy.served().items()}
        self.buckets = [ray.put(bucket) for bucket in _buckets(weights)]
        sent = [[actor.take.remote(bucket, self.version) for bucket in self.buckets] for actor in self.actors]
        for at, taken in enumerate(sent):
            try:
                ray.get(taken)
            except RayActorError as error:
                ui.reporter().say(f"a rollout actor died ({error}); another takes its place")
                self.actors[at] = self._start()
        return int(sum(weight.nbytes for weight in weights.values())) * len(self.actors)

    def pids(self) -> list[int]:
        """Processes of the actors."""
        found: list[int] = ray.get([actor.pid.remote() for actor in self.actors])
        return found

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def _buckets(weights: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    found: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, weight in weights.items():
        if found[-1] and size + weight.numel() > BUCKET:
            found.append({})
            size = 0
        found[-1][name] = weight
        size += weight.numel()
    return found
