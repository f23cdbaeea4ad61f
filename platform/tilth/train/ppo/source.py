"""Where a policy's weights come from, as picklable data: the same model can be built in any process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import get_peft_model
from transformers import set_seed

from tilth.data.loading import load_pretrained, load_tokenizer
from tilth.data.transform import Inputs
from tilth.train.config import ModelConfig
from tilth.train.thaw import freeze


@dataclass(frozen=True)
class Source:
    """A model's name, the adapter on it, and the seed of what is new in it."""

    inputs: Inputs
    config: ModelConfig
    seed: int = 0

    @property
    def folder(self) -> Path:
        """The model below the adapter, on this node."""
        return self.inputs.model(self.config.name)

    def model(self, device: str) -> Any:
        """The model with its adapter, if any; drawn alike wherever it is built."""
        set_seed(self.seed)
        peft = self.config.peft
        quantized = peft is not None and peft.quantized
        made = load_pretrained(self.folder, "language_model", dtype=self.config.dtype, quantized=quantized).model
        if self.config.freeze:
            freeze(made, self.config.freeze)
        if peft:
            made = get_peft_model(made, peft.build("language_model", (), str(self.folder)))
        return made.to(device)

    def tokenizer(self) -> Any:
        return load_tokenizer(self.folder)
