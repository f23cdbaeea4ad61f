"""Rollouts by vLLM in this process: adapters are loaded anew after each update, full weights sent in buckets."""

from __future__ import annotations

import asyncio
import gc
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.core_model_loading import revert_weight_conversion

from tilth.data.loading import load_pretrained
from tilth.data.positions import positions
from tilth.data.schema import row_seed
from tilth.errors import StageError
from tilth.generate.engines import buckets
from tilth.generate.engines.vllm import arguments
from tilth.generate.engines.vllm_engine import import_quietly, shared_engine
from tilth.generate.engines.weights import Weights
from tilth.generate.vllm import Vllm
from tilth.train.checkpoint import scratch
from tilth.train.peft import Lora
from tilth.train.ppo.decoding import ends
from tilth.train.ppo.rollouts import Ask, Home, Sample, VllmRollouts

#: bytes of a file of weights, which are read one after the other
SHARD = "1GB"
#: what its workers take all weights anew with
EXTENSION = "tilth.generate.engines.reloading.Reloading"


class Served:
    """Implements `tilth.train.ppo.rollouts.Generating`. The engine ends with this object."""

    concurrent = True

    def __init__(self, config: VllmRollouts, home: Home) -> None:
        import_quietly()
        self.config, self.policy = config, home.policy
        self.ends = ends(home.policy.model, home.tokenizer)
        self.folder = scratch()
        base = _below(home, self.folder / "below")
        known = positions(AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True))
        context = min(home.max_length, known or home.max_length)
        wanted = Vllm(
            model=str(base), dtype=home.source.config.dtype, max_model_len=context,
            engine=config.engine,
        )  # fmt: skip
        peft = home.source.config.peft
        rank = peft.rank if isinstance(peft, Lora) else 0
        # log p as it was drawn, with the temperature in it
        how = {**arguments(wanted, base, context, rank), "logprobs_mode": "processed_logprobs"}
        self.sleeps = config.sleep and self.policy.device.type == "cuda"
        if self.sleeps:
            how["enable_sleep_mode"] = True
        if not self.policy.adapted:
            how["worker_extension_cls"] = EXTENSION
        self.engine: Any = shared_engine(how, config.engine.restarts)
        self.version, self.count, self.adapter = -1, 0, None
        #: all weights as they were last given to vLLM, for an engine that must be started anew
        self.given: Mapping[str, torch.Tensor] = {}
        #: the engine that was sent to sleep, if it has not been woken since
        self.asleep: Any = None

    def generate(self, asks: Sequence[Ask]) -> list[Sample]:
        self._wake()
        while True:
            begun = self.engine.life.engine
            found: list[Sample] = self.engine.loop.run(self._all(asks))
            if not self.given or self.engine.life.engine is begun:
                self._rest()
                return found
            # an engine that was started anew holds the weights from before training
            self.engine.loop.run(self._send())

    async def _all(self, asks: Sequence[Ask]) -> list[Sample]:
        return list(await asyncio.gather(*map(self._one, asks)))

    async def _one(self, ask: Ask) -> Sample:
        output = await self.engine.ask(list(ask.prompt), self._params(ask), self.adapter)
        said = output.outputs[0]
        tokens = tuple(said.token_ids)
        if said.logprobs is None or not tokens:
            raise StageError(f"vLLM gave no completion with log-probabilities to row {ask.row}")
        logs = tuple(at[token].logprob for at, token in zip(said.logprobs, tokens, strict=True))
        return Sample(ask, tokens, logs, said.finish_reason == "stop")

    def _params(self, ask: Ask) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        return SamplingParams(
            seed=row_seed(ask.seed, ask.row, "rollout") & (2**62 - 1), temperature=self.config.temperature,
            max_tokens=self.config.max_tokens, logprobs=0, stop_token_ids=sorted(self.ends),
            output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False,
        )  # fmt: skip

    def sync(self) -> int:
        if self.version == self.policy.version:
            return 0
        self.version = self.policy.version
        return self._sync_adapter() if self.policy.adapted else self._sync_all()

    def _sync_adapter(self) -> int:
        self.count += 1
        folder = self.folder / f"{self.count:06d}"
        self.policy.model.save_pretrained(folder, max_shard_size=SHARD)
        # a name that vLLM does not know: it loads what lies there; the one before is no longer asked for
        self.adapter = self.engine.adapter(folder)
        if (before := self.folder / f"{self.count - 1:06d}").exists():
            shutil.rmtree(before)
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    def _sync_all(self) -> int:
        self.given = _by_checkpoint(self.policy.model)
        if self.config.staleness:
            # the policy learns on while completions are drawn by these
            self.given = {name: weight.cpu().clone() for name, weight in self.given.items()}
        self._wake()
        self.engine.loop.run(self._send())
        return sum(weight.nbytes for weight in self.given.values())

    def _rest(self) -> None:
        """Give memory back until it is woken, if so set; one that died on the way has given back all."""
        if self.sleeps:
            self.asleep = self.engine.life.engine
            self.engine.loop.run(self.engine.told(lambda engine: engine.sleep(level=1)))

    def _wake(self) -> None:
        """Take memory again; an engine that was started anew meanwhile is awake."""
        asleep, self.asleep = self.asleep, None
        if asleep is not None and asleep is self.engine.life.engine:
            # what the learner no longer uses is vLLM's again only once PyTorch lets go of it
            gc.collect()
            torch.cuda.empty_cache()
            self.engine.loop.run(self.engine.told(lambda engine: engine.wake_up()))

    async def _send(self) -> None:
        """All weights in their places, and nothing remembered of what the old ones computed.

        A dead engine takes none; the one that is started in its place is given them by `generate`.
        """
        await self.engine.told(lambda engine: buckets.send(engine, self.given))

    def close(self) -> None:
        self.engine = None
        shutil.rmtree(self.folder, ignore_errors=True)


def _by_checkpoint(model: Any) -> dict[str, torch.Tensor]:
    """A model's weights as vLLM reads them: by their names in a checkpoint, those that are tied once."""
    whole = revert_weight_conversion(model, model.state_dict())
    seen: set[tuple[int, int]] = set()
    found = {}
    for name, weight in whole.items():
        place = (weight.data_ptr(), weight.nbytes)
        if place not in seen:
            seen.add(place)
            found[name] = weight
    return found


def _below(home: Home, folder: Path) -> Path:
    """A directory of the weights that the policy begins with, as its learner holds them.

    What was an adapter on a base is merged here in the learner's own number format: merged in that of the base, as it
    is served elsewhere, it would answer a little otherwise.
    """
    weights = Weights.at(home.source.folder)
    if weights.adapter is None:
        return weights.base
    merged = load_pretrained(home.source.folder, "language_model", dtype=home.source.config.dtype).model
    merged.save_pretrained(folder, max_shard_size=SHARD)
    home.tokenizer.save_pretrained(folder)
    return folder
