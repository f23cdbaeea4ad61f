"""Forward passes of a loaded model over windows of unlike length: batched by length, padded on the right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from tilth.data.batching import in_batches
from tilth.data.loading import Loaded
from tilth.data.positions import readable

#: in place of a token that is not scored
IGNORED = -100
R = TypeVar("R")


@dataclass(frozen=True)
class Window:
    """Token ids that a model reads together: a row or a part of it.

    `targets` are the tokens that it is to foresee: of a language model the same ids, with IGNORED where they are not
    scored, as the first one never is; of an encoder-decoder what the decoder is to write.
    """

    ids: list[int]
    targets: list[int] = field(default_factory=list)
    truncated: bool = False
    #: for each token its segment, its word or its characters, where the head needs them
    segments: list[int] = field(default_factory=list)
    words: list[int | None] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    #: UTF-8 bytes of what its targets say
    bytes: int = 0

    @property
    def size(self) -> int:
        return len(self.ids)

    @property
    def scored(self) -> int:
        """Tokens that are scored."""
        return sum(target != IGNORED for target in self.targets)


class Passes:
    """A model ready to read windows. `batch_tokens` are padded tokens of one pass; `most`: no longer windows."""

    def __init__(self, loaded: Loaded, batch_tokens: int = 2048, most: int | None = None) -> None:
        self.loaded = loaded
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.batch_tokens = batch_tokens
        self.max_length = readable(self.model.config, self.tokenizer, loaded.max_length, most)

    def cut(self, *texts: Any, **how: Any) -> tuple[Any, bool]:
        """What the tokenizer makes of texts, cut as in training so that its marks stay, and whether it was cut."""
        found = self.tokenizer(*texts, **how)
        if len(found["input_ids"]) <= self.max_length:
            return found, False
        return self.tokenizer(*texts, truncation=True, max_length=self.max_length, **how), True

    def over(self, windows: Sequence[Window], run: Callable[[list[Window]], Sequence[R]]) -> list[R]:
        """What `run` finds in each window, asked of batches of them."""
        return in_batches(windows, run, size=self.batch_tokens, length=lambda item: item.size)

    def forward(self, batch: Sequence[Window], **more: torch.Tensor) -> Any:
        """The model's outputs for a batch."""
        ids = self.padded([item.ids for item in batch], self.tokenizer.pad_token_id or 0)
        mask = self.padded([[1] * item.size for item in batch], 0)
        if batch[0].segments:
            more["token_type_ids"] = self.padded([item.segments for item in batch], 0)
        with torch.inference_mode():
            return self.model(input_ids=ids, attention_mask=mask, **more)

    def padded(self, rows: list[list[int]], fill: int) -> torch.Tensor:
        """Rows of unlike length as one tensor."""
        width = max(map(len, rows))
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=self.model.device)
