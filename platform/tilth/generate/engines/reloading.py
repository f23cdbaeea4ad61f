"""What vLLM's workers can do beside their own work: take all weights of a model anew. Runs in vLLM's processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from tilth.generate.engines.buckets import Packed, mapped


class Reloading:
    """Mixed into vLLM's own worker, whose attributes these are."""

    get_model: Any
    vllm_config: Any

    def begin_weights(self) -> None:
        """From here on weights come in; until all have, nothing may be asked of the model."""
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self.get_model())

    def take_weights(self, path: str, size: int, bucket: list[Packed]) -> None:
        """Those of one bucket, each into its place once its layer is complete."""
        with set_current_vllm_config(self.vllm_config):
            self.get_model().load_weights(_unpacked(mapped(path, size), bucket))

    def end_weights(self) -> None:
        """All are there."""
        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(self.get_model(), self.vllm_config.model_config)
        if current_platform.is_cpu():
            for module in self.get_model().modules():
                # of an embedding a packed copy makes the logits, and the reload of vLLM 0.32 leaves that as it was
                if hasattr(module, "cpu_linear") and module.weight.numel():
                    dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def _unpacked(memory: torch.Tensor, bucket: list[Packed]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, dtype, shape, start, stop in bucket:
        # a copy: vLLM keeps what it is given until the layer is whole, and the next bucket lies in the same memory
        yield name, memory[start:stop].clone().view(getattr(torch, dtype)).view(shape)
