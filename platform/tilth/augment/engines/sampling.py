"""Sampling in which every sequence has its own random numbers, whatever batch it is decoded in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class SeededSampling:
    """A logits processor that samples: exactly one token of each sequence keeps a finite score.

    It adds Gumbel noise to log-probabilities, whose maximum is a sample of the softmax (Gumbel 1954; Maddison et al.
    2014). The noise is a hash of (seed of the sequence, step, token), so that it does not depend on the batch, the
    device or a generator's state. Used with greedy decoding. Scores are (batch, vocabulary).
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top: int, device: Any) -> None:
        self.seeds = torch.tensor(seeds, dtype=torch.int64, device=device).unsqueeze(1)
        self.temperature, self.top = temperature, top

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        values, tokens = scores.float().topk(min(self.top, scores.shape[-1]))
        noise = gumbel(self.seeds, input_ids.shape[1], tokens)
        best = tokens.gather(1, (values.double() / self.temperature + noise).argmax(-1, keepdim=True))
        return torch.full_like(scores, -torch.inf).scatter_(1, best, 0.0)


def gumbel(seeds: Any, step: int, tokens: Any) -> Any:
    """Standard Gumbel noise in float64, one number for each of (seed, step, token); shapes broadcast."""
    bits = _mix(_mix(_mix(seeds) + step) + tokens)
    uniform = (_shift(bits, 11).double() + 0.5) / 2.0**53
    return -torch.log(-torch.log(uniform))


def _mix(x: Any) -> Any:
    """The finalizer of SplitMix64 (Steele et al. 2014) on int64, which wraps around."""
    x = x + (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift(x, 31)


def _shift(x: Any, by: int) -> Any:
    """Logical shift to the right; int64's own one would carry the sign along."""
    return (x >> by) & ((1 << (64 - by)) - 1)
