"""What a step learns from: samples with their scores, and for each token what policy, reference and critic said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tilth.errors import StageError
from tilth.train.ppo import maths
from tilth.train.ppo.rollouts import Sample


@dataclass(frozen=True, kw_only=True)
class Seen:
    """N samples, those of one prompt side by side. Tensors are [N, C] on the CPU, completions padded on the right.

    `behaviour` is log p under the policy that drew a token, `old` under the one that is about to learn from it.
    """

    samples: tuple[Sample, ...]
    mask: Tensor
    behaviour: Tensor
    old: Tensor
    reference: Tensor
    entropy: Tensor
    values: Tensor | None = None

    @property
    def kl(self) -> Tensor:
        """KL of each completion from the reference [N], in nats, by k1."""
        return ((self.old - self.reference) * self.mask).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Experience(Seen):
    """Samples with what they are worth; scores are [N]."""

    #: as the reward said
    scores: Tensor
    #: as they are learnt from
    shaped: Tensor
    advantages: Tensor | None = None
    returns: Tensor | None = None
    weights: Tensor | None = None

    def at(self, rows: Sequence[int], room: int) -> Experience:
        """Some of the samples, cut to the longest completion among them."""
        index = torch.tensor(rows)
        tensors = {
            name: value[index, :room] if value.ndim == 2 else value[index]
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, samples=tuple(self.samples[row] for row in rows), **tensors)

    def to(self, device: object) -> Experience:
        """The same with its tensors on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    @property
    def lengths(self) -> list[int]:
        return [sample.length for sample in self.samples]


def apart(seen: Seen, tolerance: float, *, fresh: bool = True) -> dict[str, float]:
    """How far learner and generator are apart on the same tokens: what the first minibatch's ratios start from.

    StageError where samples are `fresh`, of the weights as they are now, and the two are too far apart.
    """
    difference = seen.old - seen.behaviour
    mean = maths.scalar(maths.masked_mean(difference.abs(), seen.mask))
    ratio = maths.scalar(maths.masked_mean(difference.exp(), seen.mask))
    largest = float((difference.abs() * seen.mask).max())
    if fresh and not mean <= tolerance:
        raise StageError(
            f"ppo: learner and generator differ by {mean:.3g} nats a token on the same samples, beyond "
            f"{tolerance}: the generator does not hold the learner's weights, or computes too "
            "coarsely; use the same number format for both, or raise watchers.sync"
        )
    return {"sync_ratio": ratio, "sync_gap": mean, "sync_gap_max": largest}


def behaviour(samples: Sequence[Sample], like: Tensor) -> Tensor:
    """log p of each token as its generator said [N, C], 0 at padding."""
    found = torch.zeros_like(like)
    for row, sample in enumerate(samples):
        found[row, : len(sample.logprobs)] = torch.tensor(sample.logprobs)
    return found
