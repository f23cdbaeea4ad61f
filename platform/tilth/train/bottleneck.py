"""Bottleneck adapters as a kind of PEFT; the modules themselves are in `tilth.data.bottleneck`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from tilth.train.peft import Peft, shared


class Bottleneck(Peft):
    """Small networks with a residual connection behind the sub-layers of each transformer block.

    houlsby: behind attention and feed-forward layer (Houlsby et al. 2019, arXiv:1902.00751). pfeiffer: behind the
    feed-forward layer alone (Pfeiffer et al. 2021, arXiv:2005.00247), here before its residual sum in every
    architecture. Norms stay frozen. For Llama-like models (Qwen, Mistral), BERT, RoBERTa, DistilBERT, GPT-2 and T5,
    or by `targets` for any other.
    """

    placement: Literal["houlsby", "pfeiffer"] = Field("houlsby", description="Two adapters in each block, or one.")
    width: int = Field(64, ge=1, description="Units of the bottleneck.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the bottleneck.")
    targets: str | None = Field(
        None, min_length=1, description="Linear layers to put adapters behind: a regular expression of whole names."
    )

    def build(self, objective: str, head: tuple[str, ...] = (), tokenizer: str = "") -> Any:
        from tilth.data.bottleneck import ATTENTION, FEED_FORWARD, BottleneckConfig

        places = [FEED_FORWARD] if self.placement == "pfeiffer" else [ATTENTION, FEED_FORWARD]
        targets = self.targets or rf".*\.({'|'.join(places)})"
        return BottleneckConfig(
            width=self.width, dropout=self.dropout, target_modules=targets, **shared(objective, head)
        )

    def parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Two adapters of two matrices and their biases in each block, or one, as wide as the model."""
        blocks = {found[0] for name in shapes if (found := re.search(r"^.*?\.\d+\.", name))}
        width = max((min(shape) for shape in shapes.values() if len(shape) == 2), default=0)
        each = 1 if self.placement == "pfeiffer" else 2
        return len(blocks) * each * (2 * self.width * width + self.width + width)
