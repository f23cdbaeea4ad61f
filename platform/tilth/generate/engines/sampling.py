"""Sampling in which every sequence has its own random numbers, whatever batch it is decoded in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

# how many of the likeliest tokens are looked at first: sorting a whole vocabulary costs as much as some layers
_HEAD = 1024


@dataclass(frozen=True)
class Draws:
    """How each sequence of a batch is drawn: its seed and temperature (0: the likeliest token), and what all share.

    Meanings and order are vLLM's: the penalty on tokens seen, the temperature, the `top_k` best (0: all), the best of
    these that together hold `top_p`.
    """

    seeds: Sequence[int]
    temperatures: Sequence[float]
    top_k: int = 0
    top_p: float = 1.0
    penalty: float = 1.0


class Constraint(Protocol):
    """What one sequence may go on with."""

    def allowed(self) -> Any:
        """A mask over the vocabulary, true for tokens that may follow."""


class SeededSampling:
    """A logits processor that samples: exactly one token of each sequence keeps a finite score.

    It adds Gumbel noise to log-probabilities, whose maximum is a sample of the softmax (Gumbel 1954; Maddison et al.
    2014). The noise is a hash of (seed of the sequence, step, token), so that it does not depend on the batch, the
    device or a generator's state. Used with greedy decoding. Scores are (batch, vocabulary).

    `start` is the width of the padded prompts, so that a step counts generated tokens and padding changes no draw;
    `prompts` holds their tokens, for the penalty. A sequence without a constraint has None.
    """

    def __init__(
        self,
        draws: Draws,
        device: Any,
        start: int = 0,
        prompts: Sequence[Sequence[int]] = (),
        constraints: Sequence[Constraint | None] = (),
    ) -> None:
        self.draws, self.start, self.prompts, self.constraints = draws, start, prompts, constraints
        self.seeds = torch.tensor(draws.seeds, dtype=torch.int64, device=device).unsqueeze(1)
        temperatures = torch.tensor(draws.temperatures, dtype=torch.float64, device=device).unsqueeze(1)
        self.cold = temperatures == 0
        self.temperatures = temperatures.masked_fill(self.cold, 1.0)
        self.seen: Any = None
        #: for each step the log-probabilities (batch, 1) of the tokens drawn, before penalty and temperature
        self.logs: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = self._constrained(scores.float())
        step = input_ids.shape[1] - self.start
        values, tokens = self._candidates(self._penalized(input_ids, scores, step) / self.temperatures)
        noise = gumbel(self.seeds, step, tokens).masked_fill(self.cold, 0.0)
        best = tokens.gather(1, (values + noise).argmax(-1, keepdim=True))
        self.logs.append(scores.gather(1, best) - scores.logsumexp(-1, keepdim=True))
        return torch.full_like(scores, -torch.inf).scatter_(1, best, 0.0)

    def _constrained(self, scores: Any) -> Any:
        rows = [row for row, item in enumerate(self.constraints) if item is not None]
        if rows:
            masks = torch.stack([item.allowed() for item in self.constraints if item is not None])
            scores = scores.clone()
            scores[rows] = scores[rows].masked_fill(~masks.to(scores.device), -torch.inf)
        return scores

    def _penalized(self, input_ids: Any, scores: Any, step: int) -> Any:
        """Scores of tokens in the prompt or the text so far, made smaller; padding is no token of a prompt."""
        if self.draws.penalty == 1.0:
            return scores.double()
        if self.seen is None:
            self.seen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
            for row, ids in enumerate(self.prompts):
                self.seen[row, list(ids)] = True
        if step:
            self.seen.scatter_(1, input_ids[:, -1:], True)
        smaller = torch.where(scores > 0, scores / self.draws.penalty, scores * self.draws.penalty)
        return torch.where(self.seen, smaller, scores).double()

    def _candidates(self, warm: Any) -> tuple[Any, Any]:
        """Scores and tokens to draw from; what `top_k` and `top_p` exclude has -inf."""
        size = warm.shape[-1]
        if self.draws.top_k:
            values, tokens = warm.topk(min(self.draws.top_k, size))
            return self._nucleus(values, values.logsumexp(-1, keepdim=True)), tokens
        if self.draws.top_p == 1.0:
            return warm, torch.arange(size, device=warm.device).expand_as(warm)
        total = warm.logsumexp(-1, keepdim=True)
        values, tokens = warm.topk(min(_HEAD, size))
        if ((values - total).exp().sum(-1) < self.draws.top_p).any():
            values, tokens = warm.sort(-1, descending=True)
        return self._nucleus(values, total), tokens

    def _nucleus(self, values: Any, total: Any) -> Any:
        """`values`, best first, without those before which `top_p` is already held; the best one always stays."""
        if self.draws.top_p == 1.0:
            return values
        shares = (values - total).exp()
        return values.masked_fill(shares.cumsum(-1) - shares >= self.draws.top_p, -torch.inf)


def gumbel(seeds: Any, step: int, tokens: Any) -> Any:
    """Standard Gumbel noise in float64, one number for each of (seed, step, token); shapes broadcast."""
    return -torch.log(-torch.log(_between(_mix(_mix(_mix(seeds) + step) + tokens))))


def uniform(seeds: Any, step: int) -> Any:
    """Uniform numbers between 0 and 1 in float64, one for each of (seed, step)."""
    return _between(_mix(_mix(seeds) + step))


def _between(bits: Any) -> Any:
    """64 random bits as a number above 0 and below 1."""
    return (_shift(bits, 11).double() + 0.5) / 2.0**53


def _mix(x: Any) -> Any:
    """The finalizer of SplitMix64 (Steele et al. 2014) on int64, which wraps around."""
    x = x + (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift(x, 31)


def _shift(x: Any, by: int) -> Any:
    """Logical shift to the right; int64's own one would carry the sign along."""
    return (x >> by) & ((1 << (64 - by)) - 1)
