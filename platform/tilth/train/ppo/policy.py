"""The policy as a module: log-probabilities of completions, values beside them, and the reference below an adapter."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tilth.train.ppo import maths
from tilth.train.ppo.rollouts import Sample


@dataclass(frozen=True)
class Padded:
    """Samples side by side: prompts padded on the left, completions on the right, which all begin at one place.

    `tokens`, `attention` are [B, P + C], `mask` is [B, C].
    """

    tokens: Tensor
    attention: Tensor
    mask: Tensor

    @staticmethod
    def of(samples: Sequence[Sample], pad: int, device: Any = "cpu") -> Padded:
        """At least one sample, each with a token of completion or more."""
        prompt = max(len(sample.ask.prompt) for sample in samples)
        room = max(len(sample.tokens) for sample in samples)
        tokens = torch.full((len(samples), prompt + room), pad)
        attention = torch.zeros_like(tokens)
        for row, sample in enumerate(samples):
            start, end = prompt - len(sample.ask.prompt), prompt + len(sample.tokens)
            tokens[row, start:end] = torch.tensor([*sample.ask.prompt, *sample.tokens])
            attention[row, start:end] = 1
        mask = attention[:, prompt:].float()
        return Padded(tokens.to(device), attention.to(device), mask.to(device))

    @property
    def room(self) -> int:
        """Places of the completions."""
        return int(self.mask.shape[1])

    @property
    def completions(self) -> Tensor:
        return self.tokens[:, -self.room :]


@dataclass(frozen=True)
class Said:
    """What the policy says of a batch, each [B, C]: log p of every token, entropy where asked for, values if any.

    At padding log p is 0, so that no ratio or estimate made of it overflows.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    values: Tensor | None = None


class Policy(nn.Module):  # type: ignore[misc]
    """A causal language model, with a value head on the states that its language-model head reads, or without.

    `model` may carry a PEFT adapter: then the reference is the same weights with the adapter off, and no second copy
    is held. Dropout stays off, for the ratio of unchanged weights is 1 only without it. A `mirror` generates only,
    and has no reference.
    """

    def __init__(
        self, model: Any, *, valued: bool = False, critic: nn.Module | None = None, temperature: float = 1.0,
        half: bool = False, mirror: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        #: which update its weights are of, counted from 0
        self.version = 0
        self.model = model.eval()
        self.temperature, self.half = temperature, half
        self.adapted = hasattr(model, "disable_adapter")
        self.critic = critic
        width = model.get_input_embeddings().weight.shape[1]
        self.value_head = value_head(width).to(model.device) if valued else None
        # not registered as a submodule: it is never trained nor saved
        self._reference = [] if self.adapted or mirror else [_frozen_copy(model)]
        self._states: Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Keep what the language-model head is about to read: the last hidden states of the places asked for."""
        self._states = inputs[0] if self.value_head is not None else None

    def train(self, mode: bool = True) -> Policy:
        """Dropout stays off in training as well."""
        super().train(False)
        return self

    def recompute(self) -> None:
        """From now on recompute activations while weights are learnt, instead of keeping them."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Within, activations are recomputed if so set: transformers does it in training alone, where nothing else is.

        The mark of the layers alone is set, so that dropout stays off; and it is taken off again, for such a layer
        keeps no cache to generate with.
        """
        layers = [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    @property
    def device(self) -> Any:
        return self.model.device

    def autocast(self) -> Any:
        """Within: matrix products in bfloat16, if so set."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half)

    def forward(self, batch: Padded, *, entropy: bool = False) -> Said:
        """What the policy says of a batch; with a gradient where one is on."""
        with self.autocast():
            return self._said(batch, entropy)

    def _said(self, batch: Padded, entropy: bool) -> Said:
        logits = _logits(self.model, batch)
        states, self._states = self._states, None
        logprobs = self._logprobs(logits, batch)
        spread = maths.entropy(logits, self.temperature) if entropy else None
        return Said(logprobs, spread, self._values(batch, states))

    def _values(self, batch: Padded, states: Tensor | None) -> Tensor | None:
        if self.critic is not None:
            values: Tensor = self.critic(batch)
            return values
        if self.value_head is None or states is None:
            return None
        return self.value_head(states[:, -batch.room - 1 : -1].float()).squeeze(-1)

    def reference_logprobs(self, batch: Padded) -> Tensor:
        """log p of each token [B, C] under the policy as it was before training."""
        with torch.no_grad(), self.autocast(), self.as_reference() as model:
            logprobs = self._logprobs(_logits(model, batch), batch)
        self._states = None
        return logprobs

    def _logprobs(self, logits: Tensor, batch: Padded) -> Tensor:
        return maths.token_logprobs(logits, batch.completions, self.temperature).where(batch.mask.bool(), 0.0)

    @contextmanager
    def as_reference(self) -> Iterator[Any]:
        """The model as it was before training, for the time of the block."""
        with self.model.disable_adapter() if self.adapted else nullcontext():
            yield self.model if self.adapted else self._reference[0]

    def learnt(self) -> dict[str, nn.Parameter]:
        """Every weight that is trained, by name: adapter or all, value head, critic."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    def served(self) -> dict[str, nn.Parameter]:
        """Of these, what a generator needs, by their names in a mirror."""
        return {name: weight for name, weight in self.learnt().items() if name.startswith("model.")}


class Critic(nn.Module):  # type: ignore[misc]
    """A second model with a value head; `model` is a causal language model whose trunk alone is asked."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.model = model.eval()
        self._trunk = [inner.base_model]
        self.value_head = value_head(model.get_input_embeddings().weight.shape[1]).to(model.device)

    def forward(self, batch: Padded) -> Tensor:
        """Values [B, C] of the places before each token."""
        states = self._trunk[0](
            input_ids=batch.tokens, attention_mask=batch.attention, position_ids=maths.positions(batch.attention),
            use_cache=False,
        ).last_hidden_state  # fmt: skip
        return self.value_head(states[:, -batch.room - 1 : -1].float()).squeeze(-1)


def value_head(width: int) -> nn.Linear:
    """From a hidden state to a value, which is 0 everywhere to begin with."""
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _logits(model: Any, batch: Padded) -> Tensor:
    """Logits [B, C, V] of the places before each token of the completions; no others are computed."""
    said = model(
        input_ids=batch.tokens, attention_mask=batch.attention, position_ids=maths.positions(batch.attention),
        logits_to_keep=batch.room + 1, use_cache=False,
    )  # fmt: skip
    logits: Tensor = said.logits[:, :-1]
    return logits


def _frozen_copy(model: Any) -> Any:
    return copy.deepcopy(model).eval().requires_grad_(False)
