"""The pass that all members of a pack share: forward and backward of the frozen backbone with everybody's adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.ia3.layer import Linear as Ia3Linear
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from tilth.errors import StageError
from tilth.train.packs.layers import PackedIa3, PackedLora, Slot
from tilth.train.packs.layout import Given, batch, same
from tilth.train.packs.trunk import Trunk

_PACKED: dict[type[Any], type[Any]] = {LoraLinear: PackedLora, Ia3Linear: PackedIa3}
Found = dict[str, Tensor]


@dataclass
class Engine:
    """A backbone of its own modules on the shared weights. Members are named by their own backbones."""

    backbone: Any
    pad_free: bool
    half: bool = False
    _layers: dict[str, nn.Module] = field(default_factory=dict)
    _members: list[Any] = field(default_factory=list)
    _slots: list[Slot] = field(default_factory=list)
    _roots: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _trunk: Trunk = field(default_factory=Trunk)

    def forward(self, members: Sequence[Any], given: Sequence[Given]) -> list[Found]:
        """What each member's backbone would give for its micro-batch, cut off from the graph: `backward` joins them."""
        if len(members) != len(self._members) or any(a is not b for a, b in zip(members, self._members, strict=True)):
            self._compose(members)
        self._refresh()
        alike = self._trunk.below and all(same(given[0], one) for one in given[1:])
        whole = batch(given[:1] if alike else given, self.backbone.config.get_text_config().hidden_size, self.pad_free)
        self._trunk.begin(len(given) if alike else 1, next(iter(whole.inputs.values())).shape[0])
        whole = whole.times(len(given)) if alike else whole
        with torch.autocast(whole.device.type, torch.bfloat16, enabled=self.half):
            found = self.backbone(**whole.inputs, **({} if whole.cached else {"use_cache": False}))
        tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        return [
            {name: self._cut(whole.of(member, value)) for name, value in tensors.items()}
            for member in range(len(given))
        ]

    def backward(self) -> None:
        """Carry on what members' own backward passes left at their part, and give each parameter its gradient."""
        reached = [(root, leaf.grad) for root, leaf in self._roots if leaf.grad is not None]
        self._roots = []
        if reached:
            torch.autograd.backward([root for root, _ in reached], [gradient for _, gradient in reached])
        for slot in self._slots:
            slot.give_gradient()
        for slot in self._slots:
            slot.slab.grad = None

    def _cut(self, root: Tensor) -> Tensor:
        leaf = root.detach().requires_grad_()
        self._roots.append((root, leaf))
        return leaf

    def _refresh(self) -> None:
        """Copy every member's parameters to their places: their optimizers have moved them."""
        if not self._slots:  # prompts and prefixes lie outside the backbone
            return
        with torch.no_grad():
            torch._foreach_copy_([slot.held for slot in self._slots], [slot.parameter for slot in self._slots])

    def _compose(self, members: Sequence[Any]) -> None:
        """Put a packed layer wherever one of the members has an adapter."""
        for path, layer in self._layers.items():
            self.backbone.set_submodule(path, layer)
        adapted = [adapters(member) for member in members]
        paths = dict.fromkeys(path for found in adapted for path in found)
        self._layers = {path: self.backbone.get_submodule(path) for path in paths}
        self._members, self._slots = list(members), []
        for path, layer in self._layers.items():
            layers = [found.get(path) for found in adapted]
            kind = next(type(one) for one in layers if one is not None)
            packed = _PACKED[kind](layer, layers)
            self.backbone.set_submodule(path, packed)
            self._slots += packed.slots
        self._trunk.end()
        self._trunk = Trunk.of(self.backbone)


class ApartError(StageError):
    """A trial cannot share the pass of the others, which shows with its model."""


def adapters(backbone: Any) -> dict[str, Any]:
    """PEFT's layers in a backbone, by their paths."""
    return {path: module for path, module in backbone.named_modules() if type(module) in _PACKED}


def refuse_others(backbone: Any, below: Any) -> None:
    """ApartError for a member whose backbone is not `below` with adapters that can be packed."""
    packed = {id(p) for layer in adapters(backbone).values() for p in layer.parameters() if p.requires_grad}
    shared = {id(parameter) for parameter in below.parameters()}
    for name, parameter in backbone.named_parameters():
        if id(parameter) in shared | packed:
            continue
        what = "is trained" if parameter.requires_grad else "is not that of the other trials"
        raise ApartError(f"packs: {name} {what}, and a pack shares all weights below the head but for adapters")
    for name, module in backbone.named_modules():
        if rate := _dropout(module):
            raise ApartError(
                f"packs: {name or 'the model'} drops {rate:g} of its values at random, which no pass for all trials "
                "can draw as each of them would alone; only models without dropout are trained together"
            )


def _dropout(module: nn.Module) -> float:
    """The rate of a dropout layer, or of the dropout that an attention layer does by itself."""
    if isinstance(module, nn.Dropout):
        return float(module.p)
    rates = [value for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]
    return max(rates, default=0.0)
