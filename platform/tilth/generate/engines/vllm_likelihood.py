"""How likely a language model that vLLM serves finds texts, be it sharded over several GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilth.data.loading import Card
from tilth.data.passes import IGNORED, Window
from tilth.data.positions import readable
from tilth.errors import StageError
from tilth.generate.engines.likelihood import decoder, templated
from tilth.generate.engines.vllm import Held, arguments, together
from tilth.generate.engines.vllm_engine import Arguments, shared_engine

if TYPE_CHECKING:
    from tilth.generate.vllm import Vllm

#: tokens that are read in one step on a GPU: float32 logits of all of them, of 150,000 tokens each, take 1.2 GiB
_STEP = 2048


class VllmLikelihood:
    """Implements `tilth.generate.base.Likelihood`.

    A window is read up to the last token that is scored, which is left out: vLLM tells log-probabilities of the
    tokens of a prompt, and must write one token more. It is made to write that very token. So a window may be as
    long as the model reads. What such prompts have in common vLLM computes anew for each, whatever it may cache.

    An adapter is merged into its base once: vLLM 0.32 applies one to the logits of the next token alone, and ends
    where those of a prompt are asked for.
    """

    def __init__(self, config: Vllm, folder: Path) -> None:
        decoder(folder)
        card, held = Card.read(folder), Held.at(folder, merged=config.dtype)
        self.tokenizer: Any = templated(held.tokenizer, config.chat_template)
        self.max_length = readable(held.settings, held.tokenizer, card.max_length, config.max_model_len)
        self.conditioned = card.conditioned
        given = _in_small_steps(arguments(config, held.base, self.max_length, rank=0))
        self.engine = shared_engine(given, config.engine.restarts)

    def __call__(self, windows: Sequence[Window]) -> list[float]:
        return self.engine.loop.run(together(self._one(window) for window in windows))

    async def _one(self, window: Window) -> float:
        scored = [at for at, target in enumerate(window.targets) if target != IGNORED]
        last = scored[-1]
        try:
            output = await self.engine.ask(window.ids[:last], _parameters(window.ids[last]), None)
        except ValueError as error:
            raise StageError(f"vLLM refuses a window of {window.size} tokens: {error}") from error
        told: list[float] = [output.prompt_logprobs[at][window.ids[at]].logprob for at in scored[:-1]]
        return -sum(told, output.outputs[0].cumulative_logprob)


def _parameters(last: int) -> Any:
    """vLLM's `SamplingParams`: log-probabilities of a prompt's own tokens, and of `last` after them.

    They are the model's own, from before all but this token is ruled out.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=0.0, max_tokens=1, allowed_token_ids=[last], logprobs=0, prompt_logprobs=0, flat_logprobs=True,
        detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
    )  # fmt: skip


def _in_small_steps(given: Arguments) -> Arguments:
    """The same arguments, but for a bound on the logits that are in memory at a time, which vLLM does not reckon with.

    Where prompts are read whole, as on a CPU, there is none but their length.
    """
    if given.get("enable_chunked_prefill") is False:
        return given
    return {**given, "max_num_batched_tokens": max(_STEP, given.get("max_num_seqs", 0))}
