"""What scores completions: rewards, gold rewards and the reference, in the learner or in Ray actors of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tilth.data.schema import Row
from tilth.data.transform import Inputs
from tilth.train.ppo.microbatches import MicroBatches
from tilth.train.ppo.placement import Scoring
from tilth.train.ppo.policy import Policy
from tilth.train.ppo.ranks import ALONE
from tilth.train.ppo.rollouts import Sample
from tilth.train.ppo.settings import Algorithm
from tilth.train.ppo.source import Source
from tilth.train.rewards import Reward, RewardFunction, disagreement

if TYPE_CHECKING:
    from tilth.train.ppo.actors import Actors

#: log p of every token of samples, as the reference says
Reference = Callable[[Sequence[Sample]], list[tuple[float, ...]]]


@dataclass(frozen=True)
class Referee:
    """The policy as it was before training, as a model of its own."""

    source: Source
    algorithm: Algorithm
    temperature: float
    half: bool

    def load(self, device: str) -> Reference:
        """The model, and what it says."""
        model = self.source.model(device)
        policy = Policy(model, reference=False, temperature=self.temperature, half=self.half)
        batches = MicroBatches.of(policy, self.source.tokenizer().pad_token_id, ALONE, self.algorithm)

        def said(samples: Sequence[Sample]) -> list[tuple[float, ...]]:
            found: dict[int, tuple[float, ...]] = {}
            with torch.no_grad():
                for rows, batch in batches.deal(samples, range(len(samples))):
                    for row, logs in zip(rows, policy(batch).logprobs.tolist(), strict=True):
                        found[row] = tuple(logs[: len(samples[row].tokens)])
            return [found[row] for row in range(len(samples))]

        return said


@dataclass(frozen=True)
class Scorers:
    """What a learner asks. `reference` is None where the policy itself has one."""

    reward: RewardFunction
    gold: RewardFunction | None = None
    reference: Reference | None = None
    actors: Actors | None = None

    @property
    def apart(self) -> bool:
        """Whether others compute, so that the learner may do something else meanwhile."""
        return self.actors is not None

    def close(self) -> None:
        if self.actors is not None:
            self.actors.close()


def opened(
    scoring: Scoring, rewards: dict[str, Reward], inputs: Inputs, referee: Referee | None, learners: int
) -> Scorers:
    """The rewards named "reward" and, if any, "gold", and the reference, where `scoring` says."""
    if not scoring.apart:
        loaded = {name: reward.load(inputs) for name, reward in rewards.items()}
        return Scorers(loaded["reward"], loaded.get("gold"))
    from tilth.train.ppo.actors import Actors

    given = (rewards, inputs, referee, scoring.device)
    actors = Actors("scoring", scoring, Scorer, given, scoring.actors_of(learners) // learners)
    asked = {name: Asked(actors, name) for name in rewards}
    try:
        actors.ready()
    except BaseException:
        actors.close()
        raise
    return Scorers(asked["reward"], asked.get("gold"), _reference(actors) if referee else None, actors)


class Scorer:
    """One actor: the rewards by name, and the reference."""

    def __init__(self, rewards: dict[str, Reward], inputs: Inputs, referee: Referee | None, device: str) -> None:
        if device == "cpu":
            # Ray leaves GPUs in sight of an actor that asked for none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.rewards = {name: reward.load(inputs) for name, reward in rewards.items()}
        self.reference = referee.load(device) if referee else None

    def score(self, name: str, prompts: list[str], completions: list[str], rows: list[Row]) -> list[float]:
        return self.rewards[name](prompts, completions, rows)

    def disagreement(
        self, name: str, prompts: list[str], completions: list[str], rows: list[Row]
    ) -> Sequence[float | None]:
        return disagreement(self.rewards[name], prompts, completions, rows) or [None] * len(completions)

    def logprobs(self, samples: Sequence[Sample]) -> list[tuple[float, ...]]:
        if self.reference is None:
            raise TypeError("the policy has a reference of its own")
        return self.reference(samples)


@dataclass(frozen=True)
class Asked:
    """The RewardFunction of actors, each of which scores a share."""

    actors: Actors
    name: str

    def __call__(self, prompts: list[str], completions: list[str], rows: list[Row]) -> list[float]:
        return self._shared("score", prompts, completions, rows)

    def disagreement(self, prompts: list[str], completions: list[str], rows: list[Row]) -> list[float] | None:
        """By how much the members of an ensemble disagree; None where the reward is none."""
        found = self._shared("disagreement", prompts, completions, rows)
        return None if None in found else found

    def _shared(self, method: str, prompts: list[str], completions: list[str], rows: list[Row]) -> list[Any]:
        parts = (prompts, completions, rows)

        def ask(actor: Any, share: list[int]) -> Any:
            return getattr(actor, method).remote(self.name, *([part[place] for place in share] for part in parts))

        return self.actors.ask(len(completions), ask)


def _reference(actors: Actors) -> Reference:
    def said(samples: Sequence[Sample]) -> list[tuple[float, ...]]:
        return actors.ask(len(samples), lambda actor, share: actor.logprobs.remote([samples[at] for at in share]))

    return said
