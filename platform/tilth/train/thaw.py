"""Freezing weights as `Freeze` says, and training them again block by block."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import TrainerCallback

from tilth.errors import ModelError
from tilth.train.freeze import Freeze


def freeze(model: Any, settings: Freeze) -> None:
    """Keep what `settings` names from being trained; ModelError where a name or a block is not in the model.

    What is to be trained again later stays trainable here, for the optimizer to know of it: see `Thaw`.
    """
    for_now = [] if settings.thaw_steps else [*_blocks(model, settings), _embeddings(model, settings)]
    for parameters in [*for_now, _named(model, settings)]:
        for parameter in parameters:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("freeze: every weight is frozen and nothing is left to train; freeze fewer blocks or names")


def _blocks(model: Any, settings: Freeze) -> list[list[nn.Parameter]]:
    """Parameters of each frozen block, lowest first; of an encoder-decoder, of both halves together."""
    if settings.blocks is None:
        return []
    stacks = stacks_of(model)
    depth = max(map(len, stacks), default=0)
    numbers = range(depth)[slice(*settings.blocks)]
    if not numbers:
        raise ModelError(f"freeze.blocks {list(settings.blocks)} holds none of the model's {depth} blocks")
    return [[p for stack in stacks if n < len(stack) for p in stack[n].parameters()] for n in numbers]


def stacks_of(model: Any) -> list[nn.ModuleList]:
    """The lists of transformer blocks: every ModuleList that lies in no other."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():  # outer modules come first
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return list(found.values())


def _embeddings(model: Any, settings: Freeze) -> list[nn.Parameter]:
    if not settings.embeddings:
        return []
    return [p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()]


def _named(model: Any, settings: Freeze) -> list[nn.Parameter]:
    names = dict(model.named_parameters())
    for pattern in settings.names:
        if not any(re.search(pattern, name) for name in names):
            raise ModelError(f"freeze.names: {pattern!r} is found in no name such as {', '.join(list(names)[:3])}")
    return [p for name, p in names.items() if any(re.search(pattern, name) for pattern in settings.names)]


class Thaw(TrainerCallback):  # type: ignore[misc]
    """Gradual unfreezing. What is frozen follows from the step alone, so that a resumed run goes on as it was.

    The optimizer is built while everything is trainable; a weight without a gradient is left as it is, also by
    weight decay.
    """

    def __init__(self, model: Any, settings: Freeze) -> None:
        self.groups = [_embeddings(model, settings), *_blocks(model, settings)]
        self.fixed = {id(parameter) for parameter in _named(model, settings)}
        self.every = settings.thaw_steps or 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        thawed = state.global_step // self.every
        for place, group in enumerate(reversed(self.groups)):
            for parameter in group:
                parameter.requires_grad_(place < thawed and id(parameter) not in self.fixed)
