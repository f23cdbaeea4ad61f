"""Proposals of a masked language model: every blank of every row in one pass a batch, the head at masks alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tilth.augment.engines.masked import word_logits
from tilth.augment.lm import LanguageModel, Vocabulary, Window, windows
from tilth.augment.proposers import Blank, Proposed, Request
from tilth.data.batching import in_batches
from tilth.data.conditioning import label_prefix
from tilth.errors import ModelError

if TYPE_CHECKING:
    from tilth.augment.proposers import MaskedLM

# read beyond the words wanted at most, since a blank refuses some
_MARGIN = 64


class MaskedProposals:
    """Requests → for each, what the model proposes for each blank; log p is among the whole words of its vocabulary."""

    def __init__(self, config: MaskedLM, folder: Path) -> None:
        from transformers import AutoModelForMaskedLM

        self.config = config
        self.lm = LanguageModel.load(AutoModelForMaskedLM, folder)
        if self.lm.tokenizer.mask_token is None:
            raise ModelError(f"{folder}: the tokenizer has no mask token; use the proposer causal_lm for this model")
        self.batch_tokens = self.lm.batch_tokens(config.batch_tokens, on_cpu=256, on_gpu=16384)
        every = Vocabulary.of(self.lm.tokenizer, self.lm.model.config.vocab_size)
        self.vocabulary = every.whole()
        self.logits = word_logits(self.lm, every.allowed.nonzero().flatten(), config.precision)

    def __call__(self, requests: Sequence[Request], wanted: int) -> list[list[Proposed]]:
        masked = [self._masked(request) for request in requests]
        prefixes = [label_prefix(request.label) if self.config.label_conditional else "" for request in requests]
        cut = windows(self.lm, [text for text, _ in masked], [spans for _, spans in masked], prefixes)
        found = [[Proposed()] * len(request.blanks) for request in requests]

        def run(batch: list[Window]) -> list[None]:
            places = [place for window in batch for place in window.places]
            blanks = [requests[place.request].blanks[place.blank] for place in places]
            texts = [requests[place.request].text for place in places]
            for place, answer in zip(places, self._proposed(self._logs(batch), blanks, texts, wanted), strict=True):
                found[place.request][place.blank] = answer
            return [None] * len(batch)

        in_batches(cut, run, size=self.batch_tokens, length=lambda window: len(window.ids))
        return found

    def _masked(self, request: Request) -> tuple[str, list[tuple[int, int]]]:
        """The text with one mask for each blank, and where the masks stand."""
        mask = self.lm.tokenizer.mask_token
        text, spans, end = "", [], 0
        for blank in request.blanks:
            text += request.text[end : blank.start]
            spans.append((len(text), len(text) + len(mask)))
            text += mask if blank.end > blank.start else f"{mask} "
            end = blank.end
        return text + request.text[end:], spans

    def _logs(self, batch: Sequence[Window]) -> torch.Tensor:
        """Natural log p of the whole words at each place of the batch, [places, words]."""
        at = [(row, place.first) for row, window in enumerate(batch) for place in window.places]
        with torch.inference_mode():
            return torch.log_softmax(self.logits([window.ids for window in batch], at), dim=-1)

    def _proposed(
        self, logs: torch.Tensor, blanks: Sequence[Blank], texts: Sequence[str], wanted: int
    ) -> list[Proposed]:
        words = [text[blank.start : blank.end] for blank, text in zip(blanks, texts, strict=True)]
        tokens = [self.vocabulary.id_of(word) for word in words]
        held = logs[range(len(tokens)), [token or 0 for token in tokens]].tolist()
        originals = [None if token is None else score for token, score in zip(tokens, held, strict=True)]
        if not wanted:
            return [Proposed(original=score, expected=score) for score in originals]
        best = logs.topk(min(wanted + self._margin(blanks), logs.shape[1]), dim=-1)
        ranked = zip(best.values.tolist(), best.indices.tolist(), blanks, originals, strict=True)
        return [self._best(values, ids, blank, original, wanted) for values, ids, blank, original in ranked]

    def _margin(self, blanks: Sequence[Blank]) -> int:
        """How many words to read beyond those wanted, since a blank refuses some."""
        return min(_MARGIN, max(len(blank.avoid) for blank in blanks)) if self.vocabulary.lower else _MARGIN

    def _best(self, values: list[float], ids: list[int], blank: Blank, original: float | None, wanted: int) -> Proposed:
        pairs = ((self.vocabulary.words[token], value) for token, value in zip(ids, values, strict=True))
        fits = ((word, value) for word, value in pairs if word is not None and blank.takes(word))
        kept = list(islice(fits, wanted))
        return Proposed(tuple(word for word, _ in kept), tuple(value for _, value in kept), original, original)
