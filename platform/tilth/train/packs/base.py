"""The one model below all trials of a pack: its weights are held once, its modules every trial has for itself."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from tilth.data.loading import Pretrained
from tilth.train.independence import independent
from tilth.train.packs.turns import Streams


@dataclass
class Base:
    """Models as they were loaded, for each seed: a new head is drawn by it, and the weights below are the same."""

    _weights: dict[str, nn.Parameter] = field(default_factory=dict)
    _loaded: dict[Hashable, tuple[Pretrained, Streams]] = field(default_factory=dict)

    def lend(self, key: Hashable, load: Callable[[], Pretrained]) -> Pretrained:
        """What `load` gives, of shared weights; afterwards the random numbers are where `load` leaves them.

        `key` stands for all that `load` depends on, the seed that was just set among it.
        """
        if key not in self._loaded:
            loaded = load()
            _share(loaded.model, self._weights)
            self._loaded[key] = (loaded, Streams.now())
        loaded, after = self._loaded[key]
        after.restore()
        return replace(loaded, model=twin(loaded.model))

    @cached_property
    def pad_free(self) -> bool:
        """Whether it is a language model that keeps the rows of one sequence apart: measured, not believed."""
        model = self.first
        if not model.can_generate() or "position_ids" not in inspect.signature(model.forward).parameters:
            return False
        return independent(model)

    @property
    def first(self) -> Any:
        """The model that was loaded first, as it was."""
        return next(iter(self._loaded.values()))[0].model


def twin(model: Any) -> Any:
    """A copy with modules of its own on the very same parameters and buffers."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _share(model: Any, known: dict[str, nn.Parameter]) -> None:
    """Put known parameters in the place of equal ones, and get to know the others."""
    for path, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            same = known.setdefault(f"{path}.{name}", parameter)
            if same is not parameter and same.shape == parameter.shape and same.equal(parameter.to(same.device)):
                setattr(module, name, same)
