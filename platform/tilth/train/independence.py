"""Whether a model keeps the rows of a pack apart, measured on the very model, its adapter included.

Without a mask of its own a model of transformers makes a block-diagonal one from positions that begin anew. Not every
architecture does, and not every adapter passes positions on. Two things are asked: whether a row's logits are those it
has alone, as nearly as the number format allows, and whether they stay as they are when its neighbours change.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tilth.errors import StageError

#: differences of logits, by `leak`, that count as rounding: SmolLM2 has 3e-6 and, in bfloat16, 0.03; with rows that
#: attend to each other it has 0.8
ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 0.1}


def independent(model: Any, *, half: bool = False) -> bool:
    """Whether `model` reads the rows of a pack as if each were alone; `half`: with products of bfloat16."""
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=half):
        return leak(model) <= (ROUNDING[torch.bfloat16] if half else _rounding(model))


def demand_independence(model: Any, name: str) -> None:
    """StageError unless `model` reads the rows of a pack as if each were alone."""
    found = leak(model)
    if found > _rounding(model):
        raise StageError(
            f"packing: a row in a pack gets other logits from {name} than alone (by {found:.2g} of their spread): "
            "its architecture or adapter does not keep packed rows apart; set packing: null"
        )


def _rounding(model: Any) -> float:
    return ROUNDING.get(next(model.parameters()).dtype, 1e-4)


def leak(model: Any) -> float:
    """Root mean square of what a pack does to its rows' logits, over the deviation of the logits.

    It is infinite where a row has other logits beside other neighbours, or virtual tokens come before a pack and not
    before each of its rows.
    """
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
    alone = [model(input_ids=part, use_cache=False).logits for part in ids.split(lengths, dim=1)]
    if any(part.shape[1] != length for part, length in zip(alone, lengths, strict=True)):
        return math.inf
    expected = torch.cat(alone, dim=1).float()
    first, middle, last = ids.split(lengths, dim=1)
    others = torch.cat([(first + 1) % vocabulary, middle, (last + 1) % vocabulary], dim=1)
    together, beside = (
        model(input_ids=packed, position_ids=positions, use_cache=False).logits.float() for packed in (ids, others)
    )
    place = slice(lengths[0], lengths[0] + lengths[1])
    if _apart(together[:, place], beside[:, place]) > ROUNDING[torch.float32]:
        return math.inf
    return _apart(together, expected)


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.std())
