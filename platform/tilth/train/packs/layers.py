"""Adapted layers for the rows of all members at once.

Rows come member by member, as many of each: `[members * n, ..., features]`. What differs between members is held in
slabs, one tensor for all of them, so that a layer costs the same few operations for any number of members. Lower ranks
are padded with zeros, which neither give nor get anything (batched LoRA: Chen et al. 2023, Punica, arXiv:2310.18547;
Sheng et al. 2023, S-LoRA, arXiv:2311.03285).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = "default"


@dataclass(frozen=True)
class Slot:
    """Where one member's parameter lies in a slab: `pick` finds it there, in its own shape."""

    parameter: nn.Parameter
    slab: Tensor
    pick: Callable[[Tensor], Tensor]

    @property
    def held(self) -> Tensor:
        return self.pick(self.slab.detach())

    def give_gradient(self) -> None:
        """Add the slab's gradient to that of the parameter."""
        if self.slab.grad is None:
            return
        gradient = self.pick(self.slab.grad)
        if self.parameter.grad is None:
            self.parameter.grad = gradient
        else:
            self.parameter.grad += gradient


class PackedLora(nn.Module):  # type: ignore[misc]
    """A layer with every member's low-rank update beside it (Hu et al. 2022, arXiv:2106.09685).

    `layers` are PEFT's, None where a member does not adapt this layer.
    """

    def __init__(self, base: nn.Module, layers: Sequence[Any]) -> None:
        super().__init__()
        self.base = base
        factors = {
            place: (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
            for place, layer in enumerate(layers)
            if layer is not None
        }
        down, up = next(iter(factors.values()))
        rank = max(one.shape[0] for one, _ in factors.values())
        self.down = down.new_zeros(len(layers), rank, down.shape[1]).requires_grad_()
        self.up = up.new_zeros(len(layers), up.shape[0], rank).requires_grad_()
        scales = [0.0 if layer is None else layer.scaling[ADAPTER] for layer in layers]
        self.scale = down.new_tensor(scales)[:, None, None]
        self.slots = [slot for place, pair in factors.items() for slot in self._slots(place, *pair)]

    def _slots(self, place: int, down: nn.Parameter, up: nn.Parameter) -> list[Slot]:
        rank = down.shape[0]
        return [
            Slot(down, self.down, lambda slab: slab[place, :rank]),
            Slot(up, self.up, lambda slab: slab[place, :, :rank]),
        ]

    def forward(self, x: Tensor) -> Tensor:
        plain = self.base(x)
        members = self.down.shape[0]
        inner = torch.bmm(x.reshape(members, -1, x.shape[-1]).to(self.down.dtype), self.down.mT) * self.scale
        update = torch.bmm(inner, self.up.mT).view(plain.shape)
        return (plain + update).to(plain.dtype)


class PackedIa3(nn.Module):  # type: ignore[misc]
    """A layer with every member's rescaling of its input or its output (Liu et al. 2022, arXiv:2205.05638)."""

    def __init__(self, base: nn.Module, layers: Sequence[Any]) -> None:
        super().__init__()
        self.base = base
        vectors = {
            place: (layer.ia3_l[ADAPTER], layer.is_feedforward)
            for place, layer in enumerate(layers)
            if layer is not None
        }
        self.slots: list[Slot] = []
        self.inputs = self._slab(len(layers), {place: one for place, (one, inner) in vectors.items() if inner})
        self.outputs = self._slab(len(layers), {place: one for place, (one, inner) in vectors.items() if not inner})

    def _slab(self, members: int, vectors: dict[int, nn.Parameter]) -> Tensor | None:
        """[members, 1, features], ones for who rescales nothing here."""
        if not vectors:
            return None
        one = next(iter(vectors.values()))
        slab: Tensor = one.new_ones(members, 1, one.numel()).requires_grad_()
        for place, vector in vectors.items():
            self.slots.append(Slot(vector, slab, _picking(place, vector.shape)))
        return slab

    def forward(self, x: Tensor) -> Tensor:
        return _scaled(self.base(_scaled(x, self.inputs)), self.outputs)


def _picking(place: int, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    return lambda slab: slab[place].view(shape)


def _scaled(x: Tensor, slab: Tensor | None) -> Tensor:
    if slab is None:
        return x
    return (x.reshape(slab.shape[0], -1, x.shape[-1]) * slab).view(x.shape).to(x.dtype)
