"""Logits of some places alone: what the language-model head reads is cut to those that are asked about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def asked_places(model: Any, places: Tensor, width: int | None = None) -> Iterator[list[Tensor]]:
    """Within, `model` gives logits [1, N, V] of the N places of the batch laid end to end; no others are computed.

    With `width` the last so many places of each row are laid end to end, as where a learnt prompt comes first. Given is
    a list to which each call adds the states [N, H] that its logits are made of.
    """
    states: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        own = inputs[0] if width is None else inputs[0][:, -width:]
        states.append(own.flatten(0, 1)[places])
        return (states[-1].unsqueeze(0),)

    hook = model.get_output_embeddings().register_forward_pre_hook(cut)
    try:
        yield states
    finally:
        hook.remove()
