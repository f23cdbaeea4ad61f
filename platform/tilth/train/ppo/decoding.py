"""Rollouts by the policy itself: decoding with a cache, every completion with its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tilth.data.batching import in_batches
from tilth.data.schema import row_seed
from tilth.generate.engines.sampling import uniform
from tilth.train.ppo import maths
from tilth.train.ppo.rollouts import Ask, Home, HuggingFaceRollouts, Sample


def ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a completion: the tokenizer's mark, and those that the model says."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return frozenset(token for token in (tokenizer.eos_token_id, *own) if token is not None)


class Decoder:
    """Implements `tilth.train.ppo.rollouts.Generating` on the learner's own weights: nothing is ever out of date."""

    concurrent = False

    def __init__(self, config: HuggingFaceRollouts, home: Home) -> None:
        self.config, self.policy = config, home.policy
        self.ends = ends(home.policy.model, home.tokenizer)
        self.pad = home.tokenizer.pad_token_id

    def generate(self, asks: Sequence[Ask]) -> list[Sample]:
        # no inference mode: a policy that is trained next may have noted nothing that autograd cannot use
        with torch.no_grad(), self.policy.autocast():
            return in_batches(
                asks, self._run, size=self.config.tokens_at_once,
                length=lambda ask: len(ask.prompt) + self.config.max_tokens,
            )  # fmt: skip

    def sync(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing was started."""

    def _run(self, asks: list[Ask]) -> list[Sample]:
        decoding = Decoding(self.policy.model, asks, self.pad, self.ends)
        for step in range(self.config.max_tokens):
            if not decoding.step(step, self.config.temperature):
                break
        return decoding.samples()


class Decoding:
    """One batch on its way: prompts padded on the left, rows that have ended taken out when they are many."""

    def __init__(self, model: Any, asks: list[Ask], pad: int, ends: frozenset[int]) -> None:
        self.model, self.asks, self.ends = model, asks, ends
        width = max(len(ask.prompt) for ask in asks)
        ids = [[pad] * (width - len(ask.prompt)) + list(ask.prompt) for ask in asks]
        self.following = torch.tensor(ids, device=model.device)
        self.attention = torch.tensor([[int(at >= width - len(ask.prompt)) for at in range(width)] for ask in asks])
        self.attention = self.attention.to(model.device)
        self.seeds = torch.tensor([row_seed(ask.seed, ask.row, "rollout") for ask in asks], device=model.device)
        self.cache = DynamicCache(config=model.config)
        self.places = list(range(len(asks)))
        self.tokens: list[list[int]] = [[] for _ in asks]
        self.logprobs: list[list[float]] = [[] for _ in asks]
        self.ended = [False] * len(asks)

    def step(self, step: int, temperature: float) -> bool:
        """Draw one token for every row that goes on; False once there is none."""
        logits = self._forward()
        tokens = draw(logits, self.seeds, step, temperature)
        logs = maths.token_logprobs(logits, tokens, temperature)
        for place, token, log in zip(self.places, tokens.tolist(), logs.tolist(), strict=True):
            if not self.ended[place]:
                self.tokens[place].append(token)
                self.logprobs[place].append(log)
                self.ended[place] = token in self.ends
        self.following = tokens.unsqueeze(1)
        self.attention = torch.cat([self.attention, torch.ones_like(self.following)], dim=1)
        alive = [at for at, place in enumerate(self.places) if not self.ended[place]]
        if 2 * len(alive) <= len(self.places):
            self._keep(alive)
        return bool(alive)

    def _forward(self) -> Tensor:
        """Logits [rows, V] of the next token."""
        width = self.following.shape[1]
        at = maths.positions(self.attention)[:, -width:]
        # by its number: a slice out of many makes the head's product a batch of them, each with its copy of the head
        last = 1 if width == 1 else torch.tensor([width - 1], device=self.following.device)
        said = self.model(
            input_ids=self.following, attention_mask=self.attention, position_ids=at, past_key_values=self.cache,
            use_cache=True, logits_to_keep=last,
        )  # fmt: skip
        logits: Tensor = said.logits[:, -1]
        return logits

    def _keep(self, rows: list[int]) -> None:
        kept = torch.tensor(rows, device=self.following.device, dtype=torch.long)
        self.following, self.attention, self.seeds = (
            part[kept] for part in (self.following, self.attention, self.seeds)
        )
        if rows:
            self.cache.batch_select_indices(kept)
        self.places = [self.places[row] for row in rows]

    def samples(self) -> list[Sample]:
        parts = zip(self.asks, self.tokens, self.logprobs, self.ended, strict=True)
        return [Sample(ask, tuple(tokens), tuple(logs), ended) for ask, tokens, logs, ended in parts]


def draw(logits: Tensor, seeds: Tensor, step: int, temperature: float) -> Tensor:
    """A token of each row [B] from logits [B, V], by the inverse of the distribution function.

    The random number is a hash of (seed of the row, step): the same whatever batch the row is in.
    """
    shares = (logits.double() / temperature).softmax(-1).cumsum(-1)
    point = uniform(seeds, step) * shares[:, -1]
    return torch.searchsorted(shares, point.unsqueeze(1), right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
