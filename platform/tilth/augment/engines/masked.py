"""Logits of a masked language model over whole words, at the places that are asked for and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from tilth.augment.engines.encoder import Encoder
from tilth.augment.engines.rounded import rounded
from tilth.augment.lm import LanguageModel, head_only_at, padded


class WordLogits(Protocol):
    """Token ids of rows and places in them, (row, token) each → logits [places, words]."""

    def __call__(self, rows: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]) -> Tensor: ...


def word_logits(lm: LanguageModel, kept: Tensor, precision: Literal["int8", "float32"]) -> WordLogits:
    """Logits of `lm` for the tokens `kept` [words], in their order. The model is of no other use afterwards.

    Models of other families than `encoder.FAMILIES` are as transformers has them: padded and in float32.
    """
    kept = kept.to(lm.device)
    if not Encoder.fits(lm.model):
        return Padded(lm, kept)
    make = rounded if precision == "int8" else _as_it_is
    # the decoder is most of the head's work, and of its outputs only whole words are ever read
    lm.model.set_output_embeddings(make(_only(lm.model.get_output_embeddings(), kept)))
    if lm.device.type == "cpu":
        return Packed(Encoder(lm.model, make), _head(lm.model))
    make(lm.model.base_model)
    return Padded(lm)


class Packed(nn.Module):  # type: ignore[misc]
    """An encoder that wastes nothing on padding, and its head."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, rows: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]) -> Tensor:
        found: Tensor = self.head(self.encoder(rows, at))
        return found


class Padded(nn.Module):  # type: ignore[misc]
    """Any model of transformers, on any device; of its outputs only `columns`, where given."""

    def __init__(self, lm: LanguageModel, columns: Tensor | None = None) -> None:
        super().__init__()
        self.lm, self.columns = lm, columns

    def forward(self, rows: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]) -> Tensor:
        ids, attention = padded(rows, self.lm.tokenizer.pad_token_id, self.lm.device)
        with head_only_at(self.lm.model, [row for row, _ in at], [token for _, token in at]):
            found: Tensor = self.lm.model(input_ids=ids, attention_mask=attention).logits[0].float()
        return found if self.columns is None else found[:, self.columns]


def _only(decoder: Any, kept: Tensor) -> nn.Linear:
    """The decoder for the tokens `kept`."""
    made = nn.Linear(decoder.in_features, len(kept), device="meta")
    made.weight, made.bias = (
        nn.Parameter(part.detach()[kept], requires_grad=False) for part in (decoder.weight, decoder.bias)
    )
    return made


def _head(model: Any) -> nn.Module:
    """What a model of one of the encoder's families has after its encoder."""
    if model.config.model_type == "distilbert":
        return nn.Sequential(model.vocab_transform, model.activation, model.vocab_layer_norm, model.vocab_projector)
    head: nn.Module = model.cls if model.config.model_type == "bert" else model.lm_head
    return head


def _as_it_is(module: nn.Module) -> nn.Module:
    return module
