"""What a trial that is trained among others asks of them; one that is trained alone has no company."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from tilth.data.loading import Pretrained


class Company(Protocol):
    """The other trials of a pack, as `worker.train` and the Trainer see them."""

    @property
    def rows(self) -> Path:
        """Where the rows of all of them are prepared: those that read the same rows in the same way do it once."""

    def lend(self, key: Hashable, load: Callable[[], Pretrained]) -> Pretrained:
        """The model that `load` loads, which depends on `key` alone, on weights that all share."""

    def join(self, trainer: Any) -> None:
        """Exchange what of the trainer's model is shared."""

    def unreduced(self, model: Any) -> AbstractContextManager[None]:
        """Where no gradient is reduced over workers before `backward` does."""

    def alike(self) -> AbstractContextManager[None]:
        """Where what raises on one worker alone, as what only rank 0 does, raises on all of them."""

    def backward(self) -> None:
        """Called after the trainer's own backward pass; afterwards its parameters have their gradients."""
