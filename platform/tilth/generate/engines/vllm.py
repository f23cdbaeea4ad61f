"""Prompts to vLLM's engine and its outputs back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tilth.errors import ModelError
from tilth.generate.base import Answer, Completion, Finish, Prompt
from tilth.generate.engines.prompts import Encoded, Encoder, context
from tilth.generate.engines.vllm_engine import Arguments, import_quietly, shared_engine
from tilth.generate.engines.weights import Weights
from tilth.generate.shape import Shape

if TYPE_CHECKING:
    from tilth.generate.vllm import Vllm

_GIB = 2**30
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# below it vLLM takes the likeliest token
_GREEDY = 1e-5
_FINISH: dict[str, Finish] = {"stop": "stop"}
R = TypeVar("R")


@dataclass(frozen=True)
class Held:
    """What of a model's directory vLLM loads, and what its prompts are made with."""

    base: Path
    adapter: Path | None
    rank: int
    tokenizer: Any
    #: transformers' config of the base
    settings: Any

    @staticmethod
    def at(folder: Path, merged: str | None = None) -> Held:
        """What `folder` holds, any adapter in one with its base where it is to be `merged`, in that number format.

        ModelError where there is no vLLM, or no model that it loads.
        """
        import_quietly()
        from transformers import AutoConfig

        from tilth.data.loading import load_tokenizer

        weights = Weights.at(folder)
        if weights.objective == "seq2seq":
            raise ModelError(f"{folder} is an encoder-decoder, which vLLM does not load; use `kind: hf` for it")
        base, adapter = weights.servable() if merged is None else (weights.whole(merged), None)
        settings = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
        return Held(base, adapter, weights.rank if adapter else 0, load_tokenizer(weights.tokenizer), settings)


class VllmGenerate:
    """Implements `tilth.generate.base.Generate`."""

    def __init__(self, config: Vllm, folder: Path) -> None:
        held = Held.at(folder)
        limit = context(held.settings, held.tokenizer, config.max_model_len)
        self.config = config
        self.encode = Encoder(held.tokenizer, limit, config.sampling, config.chat_template)
        self.engine = shared_engine(arguments(config, held.base, limit, held.rank), config.engine.restarts)
        self.adapter = self.engine.adapter(held.adapter)

    def __call__(self, prompts: Sequence[Prompt]) -> list[Answer]:
        pairs = zip(prompts, self.encode(prompts), strict=True)
        return self.engine.loop.run(together(self._answer(*pair) for pair in pairs))

    async def _answer(self, prompt: Prompt, encoded: Encoded) -> Answer:
        if encoded.failure is not None:
            return Answer(failure=encoded.failure)
        try:
            output = await self._output(prompt, encoded)
        except ValueError as error:
            return Answer(failure=f"refused: {error}")
        completions = tuple(map(_completion, output.outputs))
        # the likeliest answer is the same n times, and vLLM gives it once
        whole = completions * (prompt.n // len(completions))
        return Answer(whole, len(encoded.ids), sum(item.tokens for item in completions))

    async def _output(self, prompt: Prompt, encoded: Encoded) -> Any:
        """vLLM's output; without a guide for a schema beyond its grammars, since answers are checked in any case."""
        ids = list(encoded.ids)
        if prompt.shape is not None:
            try:
                guided = parameters(self.config, prompt, encoded, _guide(prompt.shape))
                return await self.engine.ask(ids, guided, self.adapter)
            except ValueError:
                pass
        return await self.engine.ask(ids, parameters(self.config, prompt, encoded), self.adapter)


async def together(doing: Iterable[Coroutine[Any, Any, R]]) -> list[R]:
    """What all of them return; once one has raised, none goes on."""
    tasks = [asyncio.ensure_future(one) for one in doing]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def parameters(config: Vllm, prompt: Prompt, encoded: Encoded, guide: Any = None) -> Any:
    """vLLM's own `SamplingParams`."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    own = config.sampling
    temperature = own.temperature if prompt.temperature is None else prompt.temperature
    return SamplingParams(
        n=1 if temperature < _GREEDY else prompt.n,
        # each sample adds its number, and the sum is a signed 64-bit integer
        seed=prompt.seed & (2**62 - 1),
        temperature=temperature,
        top_p=own.top_p,
        top_k=own.top_k,
        repetition_penalty=own.repetition_penalty,
        max_tokens=encoded.room,
        stop=[*own.stop, *prompt.stop],
        # the engine itself knows the base's ends alone, not those of an adapter's tokenizer
        stop_token_ids=list(encoded.ends),
        logprobs=0 if config.logprobs else None,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=guide,
    )


def arguments(config: Vllm, base: Path, limit: int, rank: int) -> Arguments:
    """Arguments of `vllm.AsyncEngineArgs`, plain data."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    engine = config.engine
    found: Arguments = {
        "model": str(base),
        "tokenizer": str(base),
        "dtype": _cpu_dtype() if on_cpu and config.dtype == "auto" else config.dtype,
        "max_model_len": limit,
        "tensor_parallel_size": engine.tensor_parallel,
        "pipeline_parallel_size": engine.pipeline_parallel,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "enforce_eager": on_cpu if engine.enforce_eager is None else engine.enforce_eager,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "quantization": engine.quantization,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    gib = _cpu_cache() if on_cpu and engine.kv_cache_gib is None else engine.kv_cache_gib
    if gib is not None:
        found["kv_cache_memory_bytes"] = int(gib * _GIB)
    if on_cpu:
        # a seeded prompt that is read in parts kills vLLM 0.32 there ("CPU Generator does not use offset")
        found["enable_chunked_prefill"] = False
    if engine.max_num_seqs is not None:
        found["max_num_seqs"] = engine.max_num_seqs
    if rank:
        room = max(rank, engine.max_lora_rank or 0)
        found |= {"enable_lora": True, "max_lora_rank": next(size for size in _RANKS if size >= room)}
    return found


def _cpu_dtype() -> str:
    """bfloat16 without instructions for it is emulated: on AVX2 it is five times as slow as float32."""
    import torch

    return "auto" if torch.cpu._is_avx512_bf16_supported() else "float32"


def _cpu_cache() -> float:
    """GiB of KV cache on a CPU, where vLLM would take nine tenths of the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(8, memory // 8 // _GIB))


def _guide(shape: Shape) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    if shape.choices:
        return StructuredOutputsParams(choice=list(shape.choices))
    return StructuredOutputsParams(json=shape.schema)


def _completion(output: Any) -> Completion:
    """One sample; an end that is not the model's own (length, an abort) is a cut."""
    finish = _FINISH.get(output.finish_reason or "", "length")
    return Completion(output.text, finish, len(output.token_ids), output.cumulative_logprob)
