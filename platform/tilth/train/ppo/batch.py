"""Samples as a model reads them: each in a row of its own, or several in one row, so that hardly a place is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tilth.train.ppo.rollouts import Sample


@dataclass(frozen=True)
class Batch:
    """B samples in R rows of T places; N tokens of completions in all, C in the longest.

    Padding stands on the right, where nothing before it attends to it. Rows that hold several samples come without an
    attention mask: a model makes a block-diagonal one where positions begin anew, see `tilth.train.independence`.
    """

    #: [R, T]
    tokens: Tensor
    #: [R, T], counted from 0 in each sample
    positions: Tensor
    #: [R, T], 0 at padding; None where a row holds several samples
    attention: Tensor | None
    #: [N], sample by sample: the places, counted through all rows, whose states foretell the tokens of completions
    before: Tensor
    #: [N], these tokens
    targets: Tensor
    #: [B, C], 1 at the tokens of completions
    mask: Tensor

    @staticmethod
    def of(samples: Sequence[Sample], pad: int, device: Any = "cpu", *, packed: bool = False) -> Batch:
        """At least one sample, each with a token or more of prompt and of completion."""
        lengths = [sample.length for sample in samples]
        width, order = max(lengths), sorted(range(len(samples)), key=lambda at: -lengths[at])
        rows = fitted(order, lengths, width, len(samples)) if packed else [[at] for at in range(len(samples))]
        tokens = torch.full((len(rows), width), pad)
        positions, attention = torch.zeros_like(tokens), torch.zeros_like(tokens)
        starts = [0] * len(samples)
        for row, members in enumerate(rows):
            at = 0
            for member in members:
                end = at + lengths[member]
                starts[member] = row * width + at
                tokens[row, at:end] = torch.tensor([*samples[member].ask.prompt, *samples[member].tokens])
                positions[row, at:end] = torch.arange(lengths[member])
                attention[row, at:end] = 1
                at = end
            positions[row, at:] = torch.arange(width - at)
        spans = [
            torch.arange(start + len(sample.ask.prompt) - 1, start + sample.length - 1)
            for start, sample in zip(starts, samples, strict=True)
        ]
        targets = torch.tensor([token for sample in samples for token in sample.tokens])
        parts = (tokens, positions, attention, torch.cat(spans), targets, masks(samples))
        tokens, positions, attention, before, targets, mask = (part.to(device) for part in parts)
        return Batch(tokens, positions, None if packed else attention, before, targets, mask)

    @property
    def room(self) -> int:
        """Tokens of the longest completion."""
        return int(self.mask.shape[1])

    @property
    def inputs(self) -> dict[str, Any]:
        """What a model of transformers is called with."""
        return {
            "input_ids": self.tokens, "attention_mask": self.attention, "position_ids": self.positions,
            "use_cache": False,
        }  # fmt: skip

    def spread(self, values: Tensor) -> Tensor:
        """What was said of each token of a completion [N], sample by sample [B, C], 0 at padding."""
        empty = torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device)
        return empty.masked_scatter(self.mask.bool(), values)


def masks(samples: Sequence[Sample]) -> Tensor:
    """1 at the tokens of completions [B, C]."""
    room = max(len(sample.tokens) for sample in samples)
    return torch.tensor([[float(at < len(sample.tokens)) for at in range(room)] for sample in samples])


def fitted(order: Sequence[int], lengths: Sequence[int], width: int, rows: int) -> list[list[int]]:
    """Samples laid in at most so many rows of `width` places, each in the first with room for it; others are left out.

    First-fit decreasing (Johnson 1973) where `order` has the longest first: at most 11/9 of the rows that are needed.
    """
    found: list[list[int]] = []
    left: list[int] = []
    for sample in order:
        row = next((at for at, room in enumerate(left) if room >= lengths[sample]), None)
        if row is None and len(found) < rows:
            row = len(found)
            found.append([])
            left.append(width)
        if row is not None:
            found[row].append(sample)
            left[row] -= lengths[sample]
    return found
