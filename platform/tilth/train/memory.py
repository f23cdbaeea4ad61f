"""How many weights are trained and what memory that takes, by shapes alone, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilth.train.config import ModelConfig, Optimisation, Scale

if TYPE_CHECKING:
    from tilth.weights import Weights

FLOAT32 = 4
GIB = 2**30
#: numbers that a transformer block keeps for the backward pass, for each unit of its width and each token
KEPT = 17


@dataclass(frozen=True)
class Footprint:
    """Parameters, and bytes on all workers together."""

    trained: int
    total: int
    weights: float
    gradients: float
    optimizer: float
    activations: float = 0.0

    @property
    def bytes(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        share = 100 * self.trained / max(1, self.total)
        parts = ("weights", "gradients", "optimizer", "activations")
        each = ", ".join(f"{name} {getattr(self, name) / GIB:.2g}" for name in parts)
        percent = f"{share:.0f}" if share >= 10 else f"{share:.2g}"
        counts = f"about {self.trained:,} of {self.total:,} weights ({percent} %) are trained"
        return f"{counts}; memory about {self.bytes / GIB:.2g} GiB ({each})"


def footprint(weights: Weights, model: ModelConfig, optimisation: Optimisation, scale: Scale) -> Footprint:
    """Weights, gradients and optimizer state; activations come on top, see `activation_bytes`.

    Every weight that is trained has a gradient and AdamW's two moments, in its own number format. DeepSpeed keeps
    them and a copy of the weight in float32 where it partitions or computes in bfloat16; it divides among the workers
    what its stage says (ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054), the others hold all of it each.
    """
    added = model.peft.parameters(weights.shapes) if model.peft else 0
    trained = added if model.peft else weights.parameters - (model.freeze.count(weights.shapes) if model.freeze else 0)
    zero = scale.zero.stage if scale.zero else 0
    halved = scale.zero is not None and optimisation.precision == "bfloat16"
    width = 2 if halved or model.dtype == "bfloat16" else FLOAT32
    moments = 3 * FLOAT32 if zero or halved else 2 * width
    workers = max(1, scale.workers)
    return Footprint(
        trained,
        weights.parameters + added,
        width * (weights.parameters + added) * (1 if zero >= 3 else workers),
        width * trained * (1 if zero >= 2 else workers),
        moments * trained * (1 if zero >= 1 else workers)
        + (FLOAT32 * trained * workers if optimisation.averaging else 0),
    )


def training_bytes(weights: Weights, model: ModelConfig, optimisation: Optimisation, scale: Scale) -> float:
    """Bytes on all workers together, but for activations."""
    return footprint(weights, model, optimisation, scale).bytes


def activation_bytes(
    shape: Mapping[str, Any], tokens: int, optimisation: Optimisation, scale: Scale, objective: str
) -> float:
    """Roughly, for `tokens` in a micro-batch on each worker; `shape` is the model's config.json.

    A block keeps 17 numbers for each unit of width and token (Korthikanti et al. 2022, arXiv:2205.05198, without the
    attention matrix, which is never stored whole), with gradient checkpointing one, and one block is whole at a time.
    A language model's logits and their gradient come on top in float32.
    """
    width = _first(shape, "hidden_size", "d_model", "n_embd", "dim")
    blocks = _first(shape, "num_hidden_layers", "num_layers", "n_layer", "n_layers")
    blocks += int(shape.get("num_decoder_layers") or 0)
    number = 2 if optimisation.precision == "bfloat16" else FLOAT32
    kept = blocks + KEPT if scale.gradient_checkpointing else KEPT * blocks
    logits = (
        0
        if objective not in ("language_model", "seq2seq", "preference", "unpaired", "feedback")
        else int(shape.get("vocab_size") or 0)
    )
    return float(max(1, scale.workers) * tokens * (number * width * kept + 2 * FLOAT32 * logits))


def _first(shape: Mapping[str, Any], *names: str) -> int:
    return next((int(shape[name]) for name in names if shape.get(name)), 0)
