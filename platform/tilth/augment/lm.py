"""What masked and causal proposers share: loading, whole-word vocabularies, windows of tokens, sparse heads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from tilth.data.positions import positions
from tilth.errors import ModelError

_LETTERS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_JOINTS = str.maketrans("", "", "'’-")
# one letter that is a word, in the languages where a lone letter is otherwise a piece of one
_ONE_LETTER = frozenset("aàeéioóuyAÀEÉIOÓUY")


@dataclass(frozen=True)
class LanguageModel:
    """A language model in evaluation mode, its fast tokenizer, and where it stands."""

    model: Any
    tokenizer: Any
    device: torch.device

    @staticmethod
    def load(auto_class: Any, folder: Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
        """The model under `folder`; ModelError where weights are missing or the tokenizer gives no offsets."""
        from transformers import AutoTokenizer

        options = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
        try:
            model, info = auto_class.from_pretrained(
                folder, trust_remote_code=False, output_loading_info=True, **options
            )
        except ValueError as error:
            raise ModelError(f"{folder} is no model for this proposer (masked_lm, causal_lm): {error}") from error
        if missing := sorted(info["missing_keys"]):
            raise ModelError(
                f"{folder}: {auto_class.__name__} finds no trained weights for {missing[0]} (+{len(missing) - 1}); "
                'name a model with its language-modelling head, or adapt this one with an mlm stage and write "@stage"'
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if not tokenizer.is_fast:
            raise ModelError(f"{folder}: the tokenizer gives no offsets; save it as tokenizer.json (a fast tokenizer)")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return LanguageModel(model.to(device).eval(), tokenizer, device)

    @property
    def context(self) -> int:
        """Tokens in one window."""
        return int(min(512, positions(self.model.config) or 512, self.tokenizer.model_max_length))

    def batch_tokens(self, asked: int | Literal["auto"], on_gpu: int, on_cpu: int = 1024) -> int:
        """Padded tokens in one pass: on a CPU small batches waste least on padding, a GPU wants large ones."""
        if asked != "auto":
            return asked
        return on_cpu if self.device.type == "cpu" else on_gpu


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that are whole words: `words[id]` is None for pieces, punctuation, numbers and special tokens."""

    words: list[str | None]
    ids: dict[str, int] = field(repr=False)
    lower: bool

    @staticmethod
    def of(tokenizer: Any, size: int) -> Vocabulary:
        """The whole words of a WordPiece, byte-level BPE or SentencePiece tokenizer for a head of `size` outputs."""
        names = tokenizer.convert_ids_to_tokens(range(min(size, len(tokenizer))))
        mark = _word_mark(names)
        special = set(tokenizer.all_special_tokens)
        texts = [None if name in special else _whole_word(tokenizer, name, mark) for name in names]
        words = texts + [None] * (size - len(texts))
        ids = {word: index for index, word in enumerate(words) if word is not None}
        return Vocabulary(words, ids, all(word == word.lower() for word in ids))

    @cached_property
    def allowed(self) -> torch.Tensor:
        """A mask over the outputs, true for whole words."""
        return torch.tensor([word is not None for word in self.words])

    def whole(self) -> Vocabulary:
        """The whole words alone, in their order and numbered anew."""
        words = [word for word in self.words if word is not None]
        return Vocabulary(list(words), {word: index for index, word in enumerate(words)}, self.lower)

    def id_of(self, word: str) -> int | None:
        """The token that is this word, if one is."""
        return self.ids.get(word.lower() if self.lower else word)


def _word_mark(names: Sequence[str | None]) -> str:
    """What a token that begins a word starts with; empty for WordPiece, which marks the pieces instead."""
    counts = {mark: sum(bool(name) and str(name).startswith(mark) for name in names) for mark in ("##", "Ġ", "▁")}
    mark = max(counts, key=lambda key: counts[key])
    return "" if mark == "##" else mark


def _whole_word(tokenizer: Any, name: str | None, mark: str) -> str | None:
    if name is None or not name.startswith(mark):
        return None
    text = tokenizer.convert_tokens_to_string([name]).strip() if mark else name
    is_word = _LETTERS.fullmatch(text) and (len(text) > 1 or not text.isascii() or text in _ONE_LETTER)
    # ² and ½ are no digits to a regular expression
    return text if is_word and text.translate(_JOINTS).isalpha() else None


@dataclass(frozen=True)
class Place:
    """Tokens `first` to `end` (exclusive) of a window hold blank `blank` of request `request`."""

    request: int
    blank: int
    first: int
    end: int


@dataclass
class Window:
    """A text, or where it is longer than the model's context one of its overlapping parts."""

    ids: list[int]
    places: list[Place] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """A window and what it holds of an encoding: tokens `first` to `end`, `moved` places on, after `head` others."""

    window: Window
    encoding: Any
    first: int
    end: int
    moved: int = 0
    head: int = 0

    def tokens(self, start: int, end: int) -> tuple[int, int] | None:
        """Where characters `start` to `end` of the encoded text are in the window; None where they are not."""
        first, last = self.encoding.char_to_token(start), self.encoding.char_to_token(end - 1)
        if first is None or last is None or first < self.first or last >= self.end:
            return None
        return first + self.moved, last + 1 + self.moved

    def context(self, at: tuple[int, int]) -> int:
        """Tokens of the text on that side of a place where there are fewer."""
        return min(at[0] - self.head, len(self.window.ids) - at[1])


def windows(
    lm: LanguageModel,
    texts: Sequence[str],
    spans: Sequence[Sequence[tuple[int, int]]],
    prefixes: Sequence[str] | None = None,
) -> list[Window]:
    """Windows over `texts`, half of each shared with the next, every span placed where it has most context.

    Every window of a text begins with its prefix. Spans are character offsets in the text and not empty. Windows
    without a span are left out.
    """
    if not texts:
        return []
    before = prefixes or [""] * len(texts)
    parts = _parts(lm, texts, before)
    for request, within in enumerate(spans):
        shift = len(before[request])
        for blank, (start, end) in enumerate(within):
            held = [(part, part.tokens(start + shift, end + shift)) for part in parts[request]]
            inside = [(part.context(at), number, at) for number, (part, at) in enumerate(held) if at]
            if inside:
                _, number, at = max(inside)
                parts[request][number].window.places.append(Place(request, blank, *at))
    return [part.window for several in parts for part in several if part.window.places]


def _parts(lm: LanguageModel, texts: Sequence[str], prefixes: Sequence[str]) -> list[list[_Part]]:
    """The windows of each text."""
    limit = lm.context
    encoded = lm.tokenizer(
        [prefix + text for prefix, text in zip(prefixes, texts, strict=True)],
        truncation=True, max_length=limit, stride=limit // 2, return_overflowing_tokens=True,
    )  # fmt: skip
    found: list[list[_Part]] = [[] for _ in texts]
    for encoding, request in zip(encoded.encodings, encoded["overflow_to_sample_mapping"], strict=True):
        found[request].append(_Part(Window(encoding.ids), encoding, 0, len(encoding.ids)))
    return [
        several if len(several) == 1 or not prefix else _prefixed(lm, prefix, text)
        for several, prefix, text in zip(found, prefixes, texts, strict=True)
    ]


def _prefixed(lm: LanguageModel, prefix: str, text: str) -> list[_Part]:
    """Windows of a text that is longer than one, each with the tokens of the prefix before its own."""
    [whole] = lm.tokenizer([prefix + text], verbose=False).encodings
    ids: list[int] = whole.ids
    tail = next(count for count, special in enumerate(reversed(whole.special_tokens_mask)) if not special)
    begin = next(token for token, (_, end) in enumerate(whole.offsets) if end > len(prefix))
    # a label of many words leaves the text its half
    head, last = ids[: min(begin, lm.context // 2)], len(ids) - tail
    room = lm.context - len(head) - tail
    found = []
    for first in range(begin, last, room - room // 2):
        end = min(first + room, last)
        window = Window([*head, *ids[first:end], *ids[last:]])
        found.append(_Part(window, whole, first, end, len(head) - first, len(head)))
        if end == last:
            break
    return found


def padded(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the right, and the attention mask: both [rows, longest]."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


@contextmanager
def head_only_at(model: Any, rows: Sequence[int], columns: Sequence[int]) -> Iterator[None]:
    """Within: the model's head sees only these token positions, so its logits are [1, positions, vocabulary].

    The head costs as much as several layers; most positions of a row are never looked at.
    """

    def keep(_module: Any, _args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[list(rows), list(columns)].unsqueeze(0)
        return output

    handle = model.base_model.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()
