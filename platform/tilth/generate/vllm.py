"""Generation by vLLM in the worker: the fast way, on NVIDIA GPUs and on CPUs."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tilth.config import EXECUTION, Component
from tilth.data.transform import Inputs
from tilth.errors import Problem
from tilth.generate.base import AHEAD, Generate, Likelihood, LocalModel

#: where nobody says how much an engine decodes at a time: vLLM takes 1,024 sequences on the largest GPUs, 256 elsewhere
ROWS_IN_FLIGHT = 1024


class VllmEngine(Component):
    """How vLLM runs; but for the quantization nothing that decides what it says."""

    tensor_parallel: int = Field(1, ge=1, json_schema_extra=EXECUTION, description="GPUs that share each layer.")
    pipeline_parallel: int = Field(1, ge=1, json_schema_extra=EXECUTION, description="GPUs that share the layers out.")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, json_schema_extra=EXECUTION, description="Share of the GPU's memory for weights and KV cache."
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        json_schema_extra=EXECUTION,
        description="KV cache in GiB; none: on a GPU by its share, on a CPU an eighth of the memory, at most 8.",
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        json_schema_extra=EXECUTION,
        description="Sequences decoded at a time; none: vLLM's choice for much work, 256, on the largest GPUs 1,024.",
    )
    enforce_eager: bool | None = Field(
        None, json_schema_extra=EXECUTION, description="No compiled graphs, for a quicker start; none: so on a CPU."
    )
    enable_prefix_caching: bool = Field(
        True, json_schema_extra=EXECUTION, description="Compute what prompts have in common once."
    )
    quantization: str | None = Field(None, description="Method, as vLLM calls it (fp8, awq); none: as it is stored.")
    max_lora_rank: int | None = Field(
        None, ge=1, le=512, json_schema_extra=EXECUTION, description="Room for adapters; none: the adapter's own rank."
    )
    restarts: int = Field(
        2, ge=0, json_schema_extra=EXECUTION, description="Times that an engine which died is started anew."
    )


class Vllm(LocalModel):
    """vLLM's asynchronous engine (Kwon et al. 2023, arXiv:2309.06180), asked by several units of work at once.

    All n samples are kept, with how each ended. Workers of one process with the same model and engine share it. An
    engine that dies is started anew and asked again for what it had not answered. It never outlives its worker. On a
    CPU its threads are those of the worker: OMP_NUM_THREADS, which Ray sets to `resources.cpus`, else all cores.
    """

    version: ClassVar[int] = 2  # adapters with patterns of ranks are served at their scale; ends and marks end a text

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: as the weights are stored; on a CPU without bfloat16 instructions float32, for speed.",
    )
    logprobs: bool = Field(False, description="Tell the log-probability of each completion.")
    engine: VllmEngine = Field(default_factory=VllmEngine, description="How vLLM runs.")

    @property
    def in_flight(self) -> int:
        return AHEAD * self.engine.max_num_seqs if self.engine.max_num_seqs else ROWS_IN_FLIGHT

    def check(self) -> list[Problem]:
        if self.max_model_len is None or self.sampling.max_tokens < self.max_model_len:
            return []
        what = f"{self.sampling.max_tokens} leaves no room for a prompt in max_model_len {self.max_model_len}"
        return [
            Problem("sampling.max_tokens", what, f"use at most {self.max_model_len // 2}, or a larger max_model_len")
        ]

    def load(self, inputs: Inputs) -> Generate:
        from tilth.generate.engines.vllm import VllmGenerate

        return VllmGenerate(self, inputs.model(self.model))

    def load_likelihood(self, inputs: Inputs) -> Likelihood:
        from tilth.generate.engines.vllm_likelihood import VllmLikelihood

        return VllmLikelihood(self, inputs.model(self.model))
