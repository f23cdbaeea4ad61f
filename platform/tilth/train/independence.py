"""Whether a model keeps the rows of a pack apart, measured on the very model, its adapter included.

Without a mask of its own a model of transformers makes a block-diagonal one from positions that begin anew. Not every
architecture does, and not every adapter passes positions on.
"""

from __future__ import annotations

from typing import Any

import torch

from tilth.errors import StageError

#: greatest difference of logits, as a share of the greatest logit, that counts as rounding
ROUNDING = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def independent(model: Any) -> bool:
    """Whether `model` reads the rows of a pack as if each were alone."""
    return leak(model) <= _rounding(model)


def demand_independence(model: Any, name: str) -> None:
    """StageError unless `model` reads the rows of a pack as if each were alone."""
    found = leak(model)
    if found > _rounding(model):
        raise StageError(
            f"packing: a row in a pack gets other logits from {name} than alone (by {found:.2g} of the greatest): "
            "its architecture or adapter does not keep packed rows apart; set packing: null"
        )


def _rounding(model: Any) -> float:
    return ROUNDING.get(next(model.parameters()).dtype, 1e-4)


def leak(model: Any) -> float:
    """Greatest difference between a row's logits in a pack and alone, as a share of the greatest logit."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _leak(model)
    finally:
        model.train(was_training)


def _leak(model: Any) -> float:
    lengths = (9, 5, 11)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = ((torch.arange(sum(lengths)) * 7919 + 13) % vocabulary)[None].to(model.device)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(model.device)
    together = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    alone = [model(input_ids=part, use_cache=False).logits for part in ids.split(lengths, dim=1)]
    if any(part.shape[1] != length for part, length in zip(alone, lengths, strict=True)):
        return float("inf")  # virtual tokens come before a pack, not before each of its rows
    expected = torch.cat(alone, dim=1).float()
    return float((together.float() - expected).abs().max() / expected.abs().max())
