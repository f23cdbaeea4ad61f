"""Bottleneck adapters as a method of the library PEFT, which lacks them: importing this module registers them.

A frozen linear layer that ends a sub-layer of a transformer block is followed by a small network with a residual
connection, `h + up(gelu(down(h)))`, whose up-projection starts at zero: an adapter begins as the identity. All else
is PEFT's: saving and loading, several adapters, the base with the adapter switched off, `generate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

NAME = "BOTTLENECK"
#: the linear layers that end a block's sub-layers in Llama, Qwen, Mistral; BERT, RoBERTa; DistilBERT; GPT-2; T5
ATTENTION = r"self_attn\.o_proj|attention\.output\.dense|attention\.out_lin|attn\.c_proj|SelfAttention\.o"
FEED_FORWARD = r"mlp\.down_proj|layer\.\d+\.output\.dense|ffn\.lin2|mlp\.c_proj|DenseReluDense\.wo"


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]
    """PEFT's configuration of bottleneck adapters.

    width: units of the bottleneck. dropout: before the up-projection. target_modules: linear layers to adapt, a
    regular expression of their whole names or the ends of their names. modules_to_save: trained whole.
    """

    width: int = 64
    dropout: float = 0.0
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = NAME


class Bottleneck(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A linear layer with adapters behind it."""

    adapter_layer_names = ("bottleneck_layers",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_layers = nn.ModuleDict({})
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Put a new adapter behind the layer."""
        base: Any = self.get_base_layer()
        # GPT-2's Conv1D tells its width as nf
        size = base.out_features if isinstance(base, nn.Linear) else base.nf
        up = nn.Linear(config.width, size)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_layers[adapter_name] = nn.Sequential(
            nn.Linear(size, config.width), nn.GELU(), nn.Dropout(config.dropout), up
        )
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[…, inputs] → […, outputs]."""
        hidden: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return hidden
        for name in self.active_adapters:
            if name in self.bottleneck_layers:
                adapter: Any = self.bottleneck_layers[name]
                change = adapter(hidden.to(adapter[0].weight.dtype))
                hidden = hidden + change.to(hidden.dtype)
        return hidden


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """Puts adapters behind the target modules of a model."""

    prefix: str = "bottleneck_"
    tuner_layer_cls = Bottleneck
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT's name; ours are always given

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, Bottleneck):
            target.update_layer(adapter_name, peft_config)
            return
        new = Bottleneck(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)

    def _check_merge_allowed(self) -> None:
        raise ValueError("a bottleneck adapter is no change of weights: it cannot be merged into them")


# the keys are the names of PEFT's own methods, whose enumeration cannot be extended: members of it are strings
PEFT_TYPE_TO_PREFIX_MAPPING[NAME] = BottleneckModel.prefix
PEFT_TYPE_TO_CONFIG_MAPPING[NAME] = BottleneckConfig
PEFT_TYPE_TO_TUNER_MAPPING[NAME] = BottleneckModel
