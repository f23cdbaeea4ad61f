"""Rollouts in Ray actors of their own: weights are sent to all of them, prompts are shared out, and none is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import torch

from tilth.errors import StageError
from tilth.train.ppo.actors import Actors
from tilth.train.ppo.policy import Policy
from tilth.train.ppo.rollouts import Ask, Generating, Home, Rollouts, Sample
from tilth.train.ppo.source import Source

#: numbers of weights in one message to the actors
BUCKET = 32 * 2**20


class Mirror:
    """One actor: a copy of the policy that is sent its weights, and the generator that would serve it in place."""

    def __init__(self, config: Rollouts, source: Source, max_length: int, half: bool) -> None:
        self.policy = Policy(source.model(config.device), reference=False, half=half)
        self.weights = self.policy.learnt()
        self.generating: Generating = config.open(Home(self.policy, source.tokenizer(), source, max_length))

    def take(self, bucket: dict[str, torch.Tensor], version: int, last: bool) -> None:
        """Put weights in their places; with the last bucket of a version all of them are of it."""
        with torch.no_grad():
            for name, weight in bucket.items():
                self.weights[name].copy_(weight)
        if last:
            self.policy.version = version

    def generate(self, asks: Sequence[Ask], version: int) -> list[Sample]:
        """Samples by the weights of a version; StageError where others are held."""
        if self.policy.version != version:
            raise StageError(f"a rollout actor holds weights of version {self.policy.version}, not of {version}")
        self.generating.sync()
        return self.generating.generate(asks)


class Pool:
    """Implements `tilth.train.ppo.rollouts.Generating` by actors, each with a share of the prompts."""

    concurrent = True

    def __init__(self, config: Rollouts, home: Home, actors: int) -> None:
        self.policy, self.version = home.policy, -1
        self.buckets: list[Any] = []
        in_place = config.model_copy(update={"placement": "colocate"})
        given = (in_place, home.source, home.max_length, home.policy.half)
        self.actors = Actors("rollout", config, Mirror, given, actors)
        self.actors.first = self._send

    def generate(self, asks: Sequence[Ask]) -> list[Sample]:
        """The samples in order; those that died with their actor are drawn again by a new one, to the same tokens."""
        version = max(self.version, 0)

        def asked(actor: Any, share: list[int]) -> Any:
            return actor.generate.remote([asks[place] for place in share], version)

        return self.actors.ask(len(asks), asked)

    def sync(self) -> int:
        """Send every actor the policy's weights, several in one message; they are stored once for all of them."""
        if self.version == self.policy.version:
            return 0
        self.version = self.policy.version
        weights = {name: w.detach().cpu() for name, w in self.policy.served().items()}
        self.buckets = [ray.put(bucket) for bucket in _buckets(weights)]
        self.actors.tell(self._send)
        return int(sum(weight.nbytes for weight in weights.values())) * len(self.actors.all)

    def _send(self, actor: Any) -> list[Any]:
        last = len(self.buckets) - 1
        return [actor.take.remote(bucket, self.version, at == last) for at, bucket in enumerate(self.buckets)]

    def close(self) -> None:
        self.actors.close()


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
