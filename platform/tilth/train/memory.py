"""Memory that training takes for weights, gradients and optimizer state, before anything is loaded.

Activations come on top: they depend on the micro-batch, the length of the rows and on checkpointing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilth.train.config import ModelConfig, Optimisation, Scale

if TYPE_CHECKING:
    from tilth.weights import Weights

FLOAT32 = 4


def training_bytes(weights: Weights, model: ModelConfig, optimisation: Optimisation, scale: Scale) -> float:
    """Bytes on all workers together.

    Every weight that is trained has a gradient and AdamW's two moments, in its own number format. DeepSpeed keeps
    them and a copy of the weight in float32 where it partitions or computes in bfloat16; it divides among the workers
    what its stage says (ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054), the others hold all of it each.
    """
    added = model.peft.parameters(weights.shapes) if model.peft else 0
    trained = added if model.peft else weights.parameters
    zero = scale.zero.stage if scale.zero else 0
    halved = scale.zero is not None and optimisation.precision == "bfloat16"
    width = 2 if halved or model.dtype == "bfloat16" else FLOAT32
    moments = 3 * FLOAT32 if zero or halved else 2 * width
    workers = max(1, scale.workers)
    return (
        width * (weights.parameters + added) * (1 if zero >= 3 else workers)
        + width * trained * (1 if zero >= 2 else workers)
        + moments * trained * (1 if zero >= 1 else workers)
    )
