"""How likely a language model finds texts, by forward passes of transformers in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from tilth.data.asked_places import asked_places
from tilth.data.loading import Card, Loaded
from tilth.data.passes import IGNORED, Passes, Window
from tilth.errors import ModelError
from tilth.generate.engines.weights import Weights

if TYPE_CHECKING:
    from tilth.generate.hf import HuggingFace


class PassLikelihood:
    """Implements `tilth.generate.base.Likelihood`; one call runs at a time."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self.tokenizer: Any = passes.tokenizer
        self.max_length = passes.max_length
        self.conditioned = passes.loaded.conditioned

    def __call__(self, windows: Sequence[Window]) -> list[float]:
        return self.passes.over(windows, self._pass)

    def _pass(self, batch: list[Window]) -> list[float]:
        targets = self.passes.padded([[*item.targets[1:], IGNORED] for item in batch], IGNORED)
        places = (targets.flatten() != IGNORED).nonzero()[:, 0]
        with asked_places(self.passes.model, places, targets.shape[1]):  # a learnt prompt comes first
            logits = self.passes.forward(batch).logits[0].float()
        each = torch.zeros(targets.numel(), dtype=torch.float32, device=logits.device)
        each[places] = functional.cross_entropy(logits, targets.flatten()[places], reduction="none")
        sums: list[float] = each.view_as(targets).double().sum(dim=1).tolist()
        return sums


def transformers_likelihood(config: HuggingFace, folder: Path) -> PassLikelihood:
    """The model in `folder` as the generator `hf` loads it."""
    from tilth.generate.engines.transformers import placed

    card, weights = Card.read(folder), decoder(folder)
    model, tokenizer = weights.load(*placed(config))
    loaded = Loaded(
        model, templated(tokenizer, config.chat_template), weights.objective, (), card.max_length, card.conditioned
    )
    return PassLikelihood(Passes(loaded, config.batch_tokens, config.max_model_len))


def decoder(folder: Path) -> Weights:
    """What a directory with a causal language model holds; ModelError where it holds another one."""
    weights = Weights.at(folder)
    if weights.objective == "seq2seq":
        raise ModelError(
            f"{folder} is an encoder-decoder, of which no generator tells how likely it finds a text; name it in the "
            "stage's `models` for the task forward"
        )
    return weights


def templated(tokenizer: Any, template: str | None) -> Any:
    """The tokenizer, which from now on writes conversations by a template of the recipe's where there is one."""
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer
