"""Linear layers in 8 bits, whose output for a row depends on that row alone."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn

_INPUT = 127
# of weights: with 7 bits the sum of two neighbouring products stays within the 16 bits that AVX2 has for it
_WEIGHT = 64


class Rounded(nn.Module):  # type: ignore[misc]
    """A linear layer with inputs in 8 bits and weights in 7, both symmetric around zero.

    Each row of the input and each row of the weights has a scale of its own ("vector-wise" in Dettmers et al. 2022,
    arXiv:2208.07339), and sums of products are whole numbers: a text gives the same numbers in any batch and, but for
    the last bits of the scales, on any processor. `small`: by instructions for small numbers, where there are any;
    without them the same sums are made in float32, which holds them exactly.
    """

    weight: Tensor
    scale: Tensor
    zeros: Tensor

    def __init__(self, linear: nn.Linear, small: bool = True) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        bias = linear.bias
        scale = weight.abs().amax(dim=1).clamp_min(1e-12) / _WEIGHT
        whole = torch.round(weight / scale[:, None])
        self.small = small and weight.device.type == "cpu" and _has_small_products()
        self.register_buffer("weight", _packed(whole) if self.small else whole)
        self.register_buffer("scale", scale)
        # a parameter, since models of transformers share it with their head
        self.bias = nn.Parameter(torch.zeros_like(scale) if bias is None else bias.detach().float(), False)
        self.register_buffer("zeros", torch.zeros_like(scale, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        largest = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True)).clamp_min(1e-12) / _INPUT
        made = self._products((rows / largest).round_())
        return torch.addcmul(self.bias, made, largest).view(*x.shape[:-1], -1)

    def _products(self, whole: Tensor) -> Tensor:
        """Rows of whole numbers by the weights."""
        if not self.small:
            return nn.functional.linear(whole, self.weight) * self.scale
        # oneDNN wants them without sign: -128 to 127 become 0 to 255
        shifted = whole.to(torch.int8).view(torch.uint8).bitwise_xor_(128)
        how: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
        made: Tensor = torch.ops.onednn.qlinear_pointwise(shifted, 1.0, 128, self.weight, self.scale, self.zeros, *how)
        return made


def _has_small_products() -> bool:
    """Whether this processor multiplies small whole numbers faster than floats, by what PyTorch brings."""
    return platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()


def _packed(whole: Tensor) -> Tensor:
    made: Tensor = torch.ops.onednn.qlinear_prepack(whole.to(torch.int8), None)
    return made


def rounded(module: nn.Module) -> nn.Module:
    """`module` with every linear layer in it in 8 bits; a linear layer itself becomes one."""
    if isinstance(module, nn.Linear):
        return Rounded(module)
    for name, child in module.named_children():
        setattr(module, name, rounded(child))
    return module
