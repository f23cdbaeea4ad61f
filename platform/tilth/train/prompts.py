"""Adapters that learn a prompt in front of every text, and change no weight: prefixes, soft prompts, P-tuning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth.errors import Problem
from tilth.train.peft import Peft, shared

if TYPE_CHECKING:
    from tilth.train.config import Scale


class Prompts(Peft, family="peft"):
    """Base of the methods that learn virtual tokens."""

    refuses: ClassVar[dict[str, str]] = {"masked_lm": "PEFT has no prompt learning for masked language models"}

    length: int = Field(20, ge=1, description="Virtual tokens before every text.")

    def parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The virtual tokens as embeddings; a prefix, or the network that makes them, is a few times that."""
        tables = [shape for name, shape in shapes.items() if len(shape) == 2 and re.search(r"embed|wte|shared", name)]
        return self.length * max(tables, default=(0, 0))[1]

    def unfit(self, scale: Scale) -> list[Problem]:
        if scale.zero and scale.zero.stage == 3:
            what = f"{self.kind} cannot be saved from weights that ZeRO stage 3 has partitioned"
            return [Problem("scale.deepspeed.stage", what, "use stage 2: of so few weights nothing is gained by 3")]
        return []


class PrefixTuning(Prompts):
    """Learned keys and values before those of every layer (Li & Liang 2021, arXiv:2101.00190)."""

    projection: int | None = Field(
        None, ge=1, description="Units of the network through which the prefix is learnt; none: it is learnt itself."
    )

    def build(self, objective: str, head: tuple[str, ...] = (), tokenizer: str = "") -> Any:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(
            num_virtual_tokens=self.length,
            prefix_projection=self.projection is not None,
            encoder_hidden_size=self.projection,
            **shared(objective, head),
        )

    def unfit(self, scale: Scale) -> list[Problem]:
        found = super().unfit(scale)
        if scale.gradient_checkpointing:
            what = "a prefix lies in the cache of keys and values, which gradient checkpointing does without"
            mend = "set scale.gradient_checkpointing: false, or take prompt_tuning"
            found.append(Problem("scale.gradient_checkpointing", what, mend))
        return found


class PromptTuning(Prompts):
    """Learned embeddings before those of the text (Lester et al. 2021, arXiv:2104.08691)."""

    text: str | None = Field(
        None, min_length=1, description="Start from the embeddings of this text, repeated or cut to the length."
    )

    def build(self, objective: str, head: tuple[str, ...] = (), tokenizer: str = "") -> Any:
        from peft import PromptTuningConfig

        start: dict[str, Any] = {"prompt_tuning_init": "RANDOM"}
        if self.text is not None:
            start = {
                "prompt_tuning_init": "TEXT",
                "prompt_tuning_init_text": self.text,
                "tokenizer_name_or_path": tokenizer,
            }
        return PromptTuningConfig(num_virtual_tokens=self.length, **start, **shared(objective, head))


class PTuning(Prompts):
    """Embeddings before those of the text, made by a small network (Liu et al. 2021, arXiv:2103.10385)."""

    network: Literal["mlp", "lstm"] = Field("mlp", description="The network that makes the embeddings.")
    units: int = Field(128, ge=1, description="Units of its hidden layers.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout between the layers of an lstm.")

    def build(self, objective: str, head: tuple[str, ...] = (), tokenizer: str = "") -> Any:
        from peft import PromptEncoderConfig

        return PromptEncoderConfig(
            num_virtual_tokens=self.length,
            encoder_reparameterization_type=self.network.upper(),
            encoder_hidden_size=self.units,
            encoder_dropout=self.dropout,
            **shared(objective, head),
        )
