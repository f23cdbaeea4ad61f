"""The blocks below the first adapted one: where all members read the same rows, they are computed once for all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tilth.train.packs.layers import PackedIa3, PackedLora
from tilth.train.thaw import stacks_of


@dataclass
class Trunk:
    """Lets what comes out of the lower blocks stand for `members` before the first adapted block reads it."""

    #: blocks below the first adapted one; 0: nothing can be shared
    below: int = 0
    members: int = 1
    rows: int = 0
    _hooks: list[Any] = field(default_factory=list)
    _spread: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(backbone: Any) -> Trunk:
        """The trunk of a backbone with packed layers, all of which lie in one stack of blocks, else an empty one."""
        stacks = stacks_of(backbone)
        if len(stacks) != 1:
            return Trunk()
        packed = [sum(isinstance(m, PackedLora | PackedIa3) for m in block.modules()) for block in stacks[0]]
        if sum(packed) != sum(isinstance(m, PackedLora | PackedIa3) for m in backbone.modules()):
            return Trunk()
        found = Trunk(next((number for number, count in enumerate(packed) if count), 0))
        if found.below:
            found._hooks = [
                block.register_forward_pre_hook(found._enter, with_kwargs=True) for block in stacks[0][found.below :]
            ]
        return found

    def begin(self, members: int, rows: int) -> None:
        """A pass over so many rows begins, which stand for so many members."""
        self.members, self.rows, self._spread = members, rows, {}

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.members == 1:
            return None
        return self._each(args), {name: self._each(value) for name, value in kwargs.items()}

    def _each(self, value: Any) -> Any:
        """Tensors of one member's rows as those of all; others as they are."""
        if isinstance(value, tuple):
            return tuple(self._each(item) for item in value)
        if not isinstance(value, Tensor) or not value.dim() or value.shape[0] != self.rows:
            return value
        if id(value) not in self._spread:  # the tensor is kept with it, or another might get its id
            self._spread[id(value)] = (value, value.repeat(self.members, *[1] * (value.dim() - 1)))
        return self._spread[id(value)][1]
