"""Proposals of a masked language model: every blank of every row in one pass a batch, the head at masks alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tilth.augment.lm import LanguageModel, Vocabulary, Window, head_only_at, padded, windows
from tilth.augment.proposers import Blank, Proposed, Request
from tilth.data.batching import in_batches
from tilth.data.conditioning import label_prefix
from tilth.errors import ModelError

if TYPE_CHECKING:
    from tilth.augment.proposers import MaskedLM

# read beyond the words wanted, since a blank refuses some
_MARGIN = 64


class MaskedProposals:
    """Requests → for each, what the model proposes for each blank."""

    def __init__(self, config: MaskedLM, folder: Path) -> None:
        from transformers import AutoModelForMaskedLM

        self.config = config
        self.lm = LanguageModel.load(AutoModelForMaskedLM, folder)
        if self.lm.tokenizer.mask_token is None:
            raise ModelError(f"{folder}: the tokenizer has no mask token; use the proposer causal_lm for this model")
        self.batch_tokens = self.lm.batch_tokens(config.batch_tokens, on_gpu=16384)
        self.vocabulary = Vocabulary.of(self.lm.tokenizer, self.lm.model.config.vocab_size)
        self.excluded = ~self.vocabulary.allowed.to(self.lm.device)

    def __call__(self, requests: Sequence[Request], wanted: int) -> list[list[Proposed]]:
        masked = [self._masked(request) for request in requests]
        cut = windows(self.lm, [text for text, _ in masked], [spans for _, spans in masked])
        found = [[Proposed()] * len(request.blanks) for request in requests]

        def run(batch: list[Window]) -> list[None]:
            logs = self._log_probabilities(batch)
            places = [place for window in batch for place in window.places]
            blanks = [requests[place.request].blanks[place.blank] for place in places]
            texts = [requests[place.request].text for place in places]
            for place, answer in zip(places, self._proposed(logs, blanks, texts, wanted), strict=True):
                found[place.request][place.blank] = answer
            return [None] * len(batch)

        in_batches(cut, run, size=self.batch_tokens, length=lambda window: len(window.ids))
        return found

    def _masked(self, request: Request) -> tuple[str, list[tuple[int, int]]]:
        """The text with one mask for each blank, and where the masks stand."""
        mask = self.lm.tokenizer.mask_token
        text = label_prefix(request.label) if self.config.label_conditional else ""
        spans, end = [], 0
        for blank in request.blanks:
            text += request.text[end : blank.start]
            spans.append((len(text), len(text) + len(mask)))
            text += mask if blank.end > blank.start else f"{mask} "
            end = blank.end
        return text + request.text[end:], spans

    def _log_probabilities(self, batch: Sequence[Window]) -> torch.Tensor:
        """Natural log p over the whole vocabulary at each place of the batch, [places, vocabulary]."""
        ids, attention = padded([window.ids for window in batch], self.lm.tokenizer.pad_token_id, self.lm.device)
        rows = [row for row, window in enumerate(batch) for _ in window.places]
        columns = [place.first for window in batch for place in window.places]
        with torch.inference_mode(), head_only_at(self.lm.model, rows, columns):
            logits = self.lm.model(input_ids=ids, attention_mask=attention).logits[0]
            return torch.log_softmax(logits.float(), dim=-1)

    def _proposed(
        self, logs: torch.Tensor, blanks: Sequence[Blank], texts: Sequence[str], wanted: int
    ) -> list[Proposed]:
        tokens = [
            self.vocabulary.id_of(text[blank.start : blank.end]) for blank, text in zip(blanks, texts, strict=True)
        ]
        held = logs[range(len(tokens)), [token or 0 for token in tokens]].tolist()
        originals = [None if token is None else score for token, score in zip(tokens, held, strict=True)]
        if not wanted:
            return [Proposed(original=score, expected=score) for score in originals]
        best = logs.masked_fill(self.excluded, -torch.inf).topk(min(wanted + _MARGIN, logs.shape[1]), dim=-1)
        ranked = zip(best.values.tolist(), best.indices.tolist(), blanks, originals, strict=True)
        return [self._best(values, ids, blank, original, wanted) for values, ids, blank, original in ranked]

    def _best(self, values: list[float], ids: list[int], blank: Blank, original: float | None, wanted: int) -> Proposed:
        pairs = [(self.vocabulary.words[token], value) for token, value in zip(ids, values, strict=True)]
        kept = [(word, value) for word, value in pairs if word is not None and blank.takes(word)][:wanted]
        return Proposed(tuple(word for word, _ in kept), tuple(value for _, value in kept), original, original)
