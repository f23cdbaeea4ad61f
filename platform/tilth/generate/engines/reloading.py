"""What vLLM's workers can do beside their own work: take all weights of a model anew. Runs in vLLM's processes."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.platforms import current_platform


class Reloading:
    """Mixed into vLLM's own worker, whose methods these are."""

    reload_weights: Any
    get_model: Any

    def take_weights(self, folder: str) -> None:
        """Read every weight from the safetensors in a folder into its place."""
        self.reload_weights(weights_path=folder)
        if current_platform.is_cpu():
            for module in self.get_model().modules():
                # of an embedding a packed copy makes the logits, and the reload of vLLM 0.32 leaves that as it was
                if hasattr(module, "cpu_linear") and module.weight.numel():
                    dispatch_cpu_unquantized_gemm(module, remove_weight=False)
