"""Proposals of a causal language model: log p(word | left) + log p(right | left, word), scored in batches.

One forward pass of a text gives p(word | left) at all its blanks. Its keys and values then serve as the left context
of every candidate, so that only the word and a few tokens to its right are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tilth.augment.lm import LanguageModel, Place, Vocabulary, Window, head_only_at, padded, windows
from tilth.augment.proposers import Blank, Proposed, Request
from tilth.data.batching import in_batches

if TYPE_CHECKING:
    from tilth.augment.proposers import CausalLM

# how sure the model must be that a candidate ends where it does: "inter" in " inter|national" is no word
_WHOLE = math.log(0.5)
# read beyond the words scored, since a blank refuses some
_MARGIN = 128


@dataclass(frozen=True)
class Branch:
    """One word at one blank, continued by the right context: `word` and `right` are token ids, `left` log p."""

    row: int
    prefix: int
    word: tuple[int, ...]
    right: tuple[int, ...]
    left: float

    @property
    def fed(self) -> tuple[int, ...]:
        """The tokens whose outputs are needed: all that are followed by a scored one, the word in any case."""
        return (*self.word, *self.right[:-1])


@dataclass(frozen=True)
class Lead:
    """What the pass over a text says of one blank: `logs` is log p of each token there, [vocabulary]."""

    place: Place
    blank: Blank
    row: int
    word: tuple[int, ...]
    right: tuple[int, ...]
    logs: torch.Tensor
    expected: float | None

    def branch(self, word: tuple[int, ...]) -> Branch:
        return Branch(self.row, self.place.first, word, self.right, float(self.logs[word[0]]))


class CausalProposals:
    """Requests → for each, what the model proposes for each blank."""

    def __init__(self, config: CausalLM, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.config = config
        self.lm = LanguageModel.load(AutoModelForCausalLM, folder, getattr(torch, config.dtype))
        self.batch_tokens = self.lm.batch_tokens(config.batch_tokens, on_gpu=8192)
        size = self.lm.model.config.vocab_size
        self.vocabulary = Vocabulary.of(self.lm.tokenizer, size)
        self.excluded = ~self.vocabulary.allowed.to(self.lm.device)
        self.boundary = boundaries(self.lm.tokenizer, size).to(self.lm.device)

    def __call__(self, requests: Sequence[Request], wanted: int) -> list[list[Proposed]]:
        # an insertion's place is where the next word begins
        spans = [[(blank.start, max(blank.end, blank.start + 1)) for blank in item.blanks] for item in requests]
        cut = windows(self.lm, [item.text for item in requests], spans)
        found = [[Proposed()] * len(item.blanks) for item in requests]

        def run(batch: list[Window]) -> list[None]:
            with torch.inference_mode():
                answers = self._batch(batch, requests, wanted)
            for place, proposed in answers:
                found[place.request][place.blank] = proposed
            return [None] * len(batch)

        in_batches(cut, run, size=self.batch_tokens, length=lambda window: len(window.ids))
        return found

    def _batch(self, batch: Sequence[Window], requests: Sequence[Request], wanted: int) -> list[tuple[Place, Proposed]]:
        leads, cache = self._leads(batch, requests)
        if not wanted:
            return [(lead.place, Proposed(expected=lead.expected)) for lead in leads]
        shortlists = self._shortlists(leads)
        branches = [lead.branch(word) for lead, words in zip(leads, shortlists, strict=True) for word in words]
        scores = iter(
            in_batches(
                branches,
                lambda some: self._scores(some, cache),
                size=self.batch_tokens,
                length=lambda branch: len(branch.fed) + branch.prefix // 8,
            )
        )
        return [
            (lead.place, self._proposed(lead, words, [next(scores) for _ in words], wanted))
            for lead, words in zip(leads, shortlists, strict=True)
        ]

    def _leads(self, batch: Sequence[Window], requests: Sequence[Request]) -> tuple[list[Lead], Any]:
        """One pass over the texts: what leads to each blank, and the keys and values of all."""
        ids, attention = padded([window.ids for window in batch], 0, self.lm.device)
        places = [(row, place) for row, window in enumerate(batch) for place in window.places if place.first]
        at = [(row, column) for row, place in places for column in range(place.first - 1, place.end - 1)]
        rows, columns = [row for row, _ in at], [column for _, column in at]
        with head_only_at(self.lm.model, rows, columns):
            output = self.lm.model(input_ids=ids, attention_mask=attention, use_cache=True)
        logs = torch.log_softmax(output.logits[0].float(), dim=-1)
        held = logs[range(len(at)), [batch[row].ids[column + 1] for row, column in at]].tolist() if at else []
        leads, start = [], 0
        for row, place in places:
            blank = requests[place.request].blanks[place.blank]
            end = start + place.end - place.first
            leads.append(self._lead(batch[row], row, place, blank, logs[start], sum(held[start:end])))
            start = end
        return leads, output.past_key_values

    def _lead(self, window: Window, row: int, place: Place, blank: Blank, logs: torch.Tensor, expected: float) -> Lead:
        replaces = blank.end > blank.start
        begin = place.end if replaces else place.first
        word = tuple(window.ids[place.first : place.end]) if replaces else ()
        right = tuple(window.ids[begin : begin + self.config.right_tokens])
        return Lead(place, blank, row, word, right, logs, expected if replaces else None)

    def _shortlists(self, leads: Sequence[Lead]) -> list[list[tuple[int, ...]]]:
        """For each blank the likeliest words from the left as token ids, then the word that it holds, if any."""
        if not leads:
            return []
        logs = torch.stack([lead.logs for lead in leads]).masked_fill(self.excluded, -torch.inf)
        best = logs.topk(min(self.config.scored + _MARGIN, logs.shape[1]), dim=-1).indices.tolist()
        lists: list[list[tuple[int, ...]]] = []
        for lead, tokens in zip(leads, best, strict=True):
            named = [(token, self.vocabulary.words[token]) for token in tokens]
            fits = [(token,) for token, word in named if word is not None and lead.blank.takes(word)]
            lists.append([*fits[: self.config.scored], *([lead.word] if lead.word else [])])
        return lists

    def _scores(self, branches: Sequence[Branch], cache: Any) -> list[tuple[float, float]]:
        """For each branch log p(word | left) + log p(right | left, word), and log p that the word ends there."""
        width = max(branch.prefix for branch in branches)
        ids, fed = padded([branch.fed for branch in branches], 0, self.lm.device)
        prefix = torch.tensor([branch.prefix for branch in branches], device=self.lm.device)
        seen = torch.arange(width, device=self.lm.device)[None] < prefix[:, None]
        at = [(row, column) for row, branch in enumerate(branches) for column in range(len(branch.fed))]
        with head_only_at(self.lm.model, [row for row, _ in at], [column for _, column in at]):
            logits = self.lm.model(
                input_ids=ids,
                attention_mask=torch.cat([seen.to(fed), fed], dim=1),
                position_ids=prefix[:, None] + torch.arange(ids.shape[1], device=self.lm.device)[None],
                past_key_values=_prefixes(cache, [branch.row for branch in branches], width),
                use_cache=True,
            ).logits[0]
        return self._read(branches, logits.float())

    def _read(self, branches: Sequence[Branch], logits: torch.Tensor) -> list[tuple[float, float]]:
        """Scores from the logits after each fed token, [tokens, vocabulary]."""
        total = logits.logsumexp(dim=-1)
        starts = [0]
        for branch in branches:
            starts.append(starts[-1] + len(branch.fed))
        follows = [token for branch in branches for token in ((*branch.word, *branch.right)[1:] or (0,))]
        logs = (logits[range(len(follows)), follows] - total).tolist()
        ends = [start + len(branch.word) - 1 for start, branch in zip(starts, branches, strict=False)]
        whole = (logits[ends].masked_fill(~self.boundary, -torch.inf).logsumexp(dim=-1) - total[ends]).tolist()
        scores = []
        for branch, start, ended in zip(branches, starts, whole, strict=False):
            scored = sum(logs[start : start + len(branch.word) + len(branch.right) - 1])
            # where nothing follows, that the word ends here is all the right context there is
            scores.append((branch.left + scored + (0.0 if branch.right else ended), ended))
        return scores

    def _proposed(
        self, lead: Lead, words: Sequence[tuple[int, ...]], scores: Sequence[tuple[float, float]], wanted: int
    ) -> Proposed:
        original = scores[-1][0] if lead.word else None
        candidates = zip(words, scores, strict=True) if not lead.word else zip(words[:-1], scores[:-1], strict=True)
        ranked = sorted((-score, token) for (token,), (score, ended) in candidates if ended >= _WHOLE)[:wanted]
        names = tuple(str(self.vocabulary.words[token]) for _, token in ranked)
        return Proposed(names, tuple(-cost for cost, _ in ranked), original, lead.expected)


def _prefixes(cache: Any, rows: Sequence[int], width: int) -> Any:
    """A cache of the first `width` keys and values of these rows, copied so that the model may add to it."""
    from transformers import DynamicCache

    return DynamicCache(
        [(layer.keys[list(rows), :, :width], layer.values[list(rows), :, :width]) for layer in cache.layers]
    )


def boundaries(tokenizer: Any, size: int) -> torch.Tensor:
    """A mask [size] of the tokens that cannot continue a word: those that begin with a space or a mark, and the end."""
    special = set(tokenizer.all_special_ids)
    every = [[index] for index in range(min(size, len(tokenizer)))]
    texts = tokenizer.batch_decode(every, clean_up_tokenization_spaces=False)
    ends = [index in special or not (text[:1].isalnum() or text[:1] in "'’-_") for index, text in enumerate(texts)]
    return torch.tensor(ends + [False] * (size - len(ends)))
