"""Encoders of BERT's kind on a CPU: rows laid end to end without padding, the last layer where it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn

#: by `model_type` in the configuration; all have the same layers under different names
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")

Make = Callable[[nn.Linear], nn.Module]


@dataclass(frozen=True)
class Group:
    """Neighbouring rows of one length: tokens `start` to `end` (exclusive) of all, `length` a row."""

    start: int
    end: int
    length: int


@dataclass(frozen=True)
class Layer:
    """Attention and feed-forward, each added to its input and normalised (Vaswani et al. 2017, arXiv:1706.03762)."""

    heads: int
    mix: nn.Module
    out: nn.Module
    mixed: nn.Module
    up: nn.Module
    act: nn.Module
    down: nn.Module
    fed: nn.Module

    @staticmethod
    def of(module: nn.Module, heads: int, act: nn.Module, make: Make) -> Layer:
        """A layer of transformers. In all families its parts come in this order, whatever they are called."""
        query, key, value, out, up, down = (part for part in module.modules() if isinstance(part, nn.Linear))
        mixed, fed = (part for part in module.modules() if isinstance(part, nn.LayerNorm))
        return Layer(heads, make(_joined(query, key, value)), make(out), mixed, make(up), act, make(down), fed)

    def __call__(self, x: Tensor, groups: Sequence[Group], kept: Tensor | None) -> Tensor:
        """[tokens, width] → [tokens, width], or [kept, width] where only some tokens are asked for."""
        attended = self._attended(self.mix(x), groups)
        if kept is not None:
            attended, x = attended[kept], x[kept]
        x = self.mixed(self.out(attended) + x)
        made: Tensor = self.fed(self.down(self.act(self.up(x))) + x)
        return made

    def _attended(self, mix: Tensor, groups: Sequence[Group]) -> Tensor:
        """Attention within each row. Rows of one length go together, so that no mask is needed."""
        parts = []
        for group in groups:
            rows = mix[group.start : group.end].view(-1, group.length, 3, self.heads, mix.shape[1] // 3 // self.heads)
            query, key, value = rows.permute(2, 0, 3, 1, 4)
            found = nn.functional.scaled_dot_product_attention(query, key, value)
            parts.append(found.transpose(1, 2).reshape(group.end - group.start, -1))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class Encoder:
    """Token ids → the last hidden states at some places. The numbers are those of transformers to rounding."""

    def __init__(self, model: Any, make: Make) -> None:
        base, config = model.base_model, model.config
        self.embeddings = base.embeddings
        stack = base.transformer if config.model_type == "distilbert" else base.encoder
        act = _activation(config)
        self.layers = [Layer.of(layer, config.num_attention_heads, act, make) for layer in stack.layer]

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether a model of transformers is of this kind."""
        config = model.config
        plain = getattr(config, "position_embedding_type", "absolute") == "absolute"
        return config.model_type in FAMILIES and plain and not getattr(config, "is_decoder", False)

    def __call__(self, rows: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]) -> Tensor:
        """Hidden states [places, width] at `at`, (row, token) each. Rows of one length should be neighbours."""
        starts = list(accumulate(map(len, rows), initial=0))
        alike = [list(found) for _, found in groupby(rows, key=len)]
        groups = list(_groups(alike))
        x = torch.cat([self._embedded(found) for found in alike])
        kept = torch.tensor([starts[row] + token for row, token in at])
        for layer in self.layers:
            x = layer(x, groups, kept if layer is self.layers[-1] else None)
        return x

    def _embedded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        found: Tensor = self.embeddings(input_ids=torch.tensor(rows))
        return found.flatten(0, 1)


def _groups(alike: Sequence[Sequence[Sequence[int]]]) -> Iterator[Group]:
    """Where rows of one length lie, `alike` from the first to the last."""
    end = 0
    for found in alike:
        start, end = end, end + len(found) * len(found[0])
        yield Group(start, end, len(found[0]))


def _joined(*linears: nn.Linear) -> nn.Linear:
    """One linear layer that gives the outputs of all, one after the other."""
    first = linears[0]
    made = nn.Linear(first.in_features, sum(linear.out_features for linear in linears), device="meta")
    made.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]), requires_grad=False)
    made.bias = nn.Parameter(torch.cat([linear.bias.detach() for linear in linears]), requires_grad=False)
    return made


def _activation(config: Any) -> nn.Module:
    from transformers.activations import ACT2FN

    name = config.activation if config.model_type == "distilbert" else config.hidden_act
    found: nn.Module = ACT2FN[name]
    return found
