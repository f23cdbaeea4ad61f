"""The policy as a module: log-probabilities of completions, values beside them, and the reference below an adapter."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tilth.data.asked_places import asked_places
from tilth.train.ppo import maths
from tilth.train.ppo.batch import Batch


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
    is held. Dropout stays off, for the ratio of unchanged weights is 1 only without it. Without `reference` there is
    none here.
    """

    def __init__(
        self, model: Any, *, valued: bool = False, critic: nn.Module | None = None, temperature: float = 1.0,
        half: bool = False, reference: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        #: which update its weights are of, counted from 0
        self.version = 0
        self.model = model.eval()
        _without_dropout(model)
        self.temperature, self.half = temperature, half
        self.adapted = hasattr(model, "disable_adapter")
        self.critic = critic
        if half:
            for reader in self.readers():
                _as_they_come(reader)
        width = model.get_input_embeddings().weight.shape[1]
        self.value_head = value_head(width).to(model.device) if valued else None
        # not registered as a submodule: it is never trained nor saved
        self._reference = [_frozen_copy(model)] if reference and not self.adapted else []

    def train(self, mode: bool = True) -> Policy:
        """Dropout stays off in training as well."""
        super().train(False)
        return self

    def recompute(self) -> None:
        """From now on recompute activations while weights are learnt, instead of keeping them."""
        for model in self.readers():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Within, activations are recomputed if so set: transformers does it in training alone, where nothing else is.

        The mark of the layers alone is set, so that dropout stays off; and it is taken off again, for such a layer
        keeps no cache to generate with.
        """
        layers = [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]
        layers = [layer for layer in layers if layer.gradient_checkpointing]
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

    def forward(self, batch: Batch, *, entropy: bool = False) -> Said:
        """What the policy says of a batch; with a gradient where one is on."""
        with self.autocast():
            return self._said(batch, entropy)

    def _said(self, batch: Batch, entropy: bool) -> Said:
        logits, states = _read(self.model, batch)
        spread = batch.spread(maths.entropy(logits, self.temperature)) if entropy else None
        return Said(self._logprobs(logits, batch), spread, self._values(batch, states))

    def _values(self, batch: Batch, states: Tensor) -> Tensor | None:
        if self.critic is not None:
            values: Tensor = self.critic(batch)
            return values
        return None if self.value_head is None else _valued(self.value_head, batch, states)

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """log p of each token [B, C] under the policy as it was before training."""
        with torch.no_grad(), self.autocast(), self.as_reference() as model:
            return self._logprobs(_read(model, batch)[0], batch)

    def _logprobs(self, logits: Tensor, batch: Batch) -> Tensor:
        return batch.spread(maths.token_logprobs(logits, batch.targets, self.temperature))

    @contextmanager
    def as_reference(self) -> Iterator[Any]:
        """The model as it was before training, for the time of the block."""
        with self.model.disable_adapter() if self.adapted else nullcontext():
            yield self.model if self.adapted else self._reference[0]

    def readers(self) -> list[Any]:
        """The models that read samples and are of different architectures, it may be: its own, and the critic's."""
        return [self.model, *([self.critic.model] if self.critic is not None else [])]

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
        _without_dropout(model)
        self._trunk = [inner.base_model]
        self.value_head = value_head(model.get_input_embeddings().weight.shape[1]).to(model.device)

    def causal(self) -> bool:
        """Whether the value of a place is the same whatever comes after it."""
        ids = torch.arange(1, 9, device=self.model.device).repeat(2, 1)
        ids[1, -1] += 1
        with torch.no_grad():
            first, second = self._trunk[0](input_ids=ids, use_cache=False).last_hidden_state[:, :-1].float()
        return bool(torch.allclose(first, second, rtol=0, atol=1e-4 * float(first.abs().max())))

    def forward(self, batch: Batch) -> Tensor:
        """Values [B, C] of the places before each token."""
        states = self._trunk[0](**batch.inputs).last_hidden_state
        return _valued(self.value_head, batch, states.flatten(0, 1)[batch.before])


def value_head(width: int) -> nn.Linear:
    """From a hidden state to a value, which is 0 everywhere to begin with."""
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _valued(head: nn.Module, batch: Batch, states: Tensor) -> Tensor:
    """Values [B, C] from the states [N, H] before each token, in float32."""
    with torch.autocast(states.device.type, enabled=False):
        return batch.spread(head(states.float()).squeeze(-1))


def _read(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [N, V] of the places before each token of the completions, and the states [N, H] that they are made of.

    No others are computed.
    """
    with asked_places(model, batch.before) as states:
        logits: Tensor = model(**batch.inputs).logits
    return logits[0], states[0]


def _as_they_come(model: Any) -> None:
    """Adapters do not widen what they read to the format of their own weights: autocast narrows it again at once."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def _without_dropout(model: nn.Module) -> None:
    """Layers that draw dropout by a rate of their own, as OPT's, draw none, whatever is marked as training."""
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _frozen_copy(model: Any) -> Any:
    return copy.deepcopy(model).eval().requires_grad_(False)
