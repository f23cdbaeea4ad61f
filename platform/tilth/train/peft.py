"""Parameter-efficient fine-tuning: adapters as kinds of one family, built by the library PEFT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tilth.config import Component

_TASKS = {"classification": "SEQ_CLS", "language_model": "CAUSAL_LM", "masked_lm": None}


class Peft(Component, family="peft"):
    """An adapter. A kind says how to build PEFT's configuration of it."""

    def build(self, objective: str, head: tuple[str, ...] = ()) -> Any:
        """PEFT's configuration.

        `objective` is classification, language_model or masked_lm; `head` names modules that are new in the
        model, which are trained whole and saved with the adapter.
        """
        raise TypeError(f"{type(self).__name__} must define build()")

    def parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """About how many it adds to a model whose tensors have these shapes, for `tilth plan`; by default few."""
        return 0


class Lora(Peft):
    """Low-rank updates beside frozen weight matrices (Hu et al. 2022, arXiv:2106.09685)."""

    rank: int = Field(8, ge=1, description="Rank of the update.")
    alpha: int = Field(16, ge=1, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the update.")
    targets: str = Field("all-linear", min_length=1, description="Modules: all-linear, or a regular expression.")

    def build(self, objective: str, head: tuple[str, ...] = ()) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            modules_to_save=list(head) or None,
            task_type=_TASKS[objective],
        )

    def parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """A matrix of m x n gets two of rank x n and m x rank."""
        matrices = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) == 2}
        return sum(self.rank * sum(shape) for name, shape in matrices.items() if self._adapts(name))

    def _adapts(self, name: str) -> bool:
        """Whether a matrix of that name is among the targets; embeddings and heads are not linear layers to adapt."""
        if self.targets == "all-linear":
            return not re.search(r"embed|wte|wpe|shared|lm_head|relative_attention_bias", name)
        return re.fullmatch(rf"(.*\.)?(?:{self.targets})", name) is not None
