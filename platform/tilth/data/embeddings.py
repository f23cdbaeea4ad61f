"""Sentence embeddings: the mean of a transformer's last hidden states (Sentence-BERT, Reimers and Gurevych, 2019)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilth.data.batching import in_batches
from tilth.data.positions import positions

if TYPE_CHECKING:
    import numpy as np

    Vectors = np.ndarray[Any, np.dtype[np.float32]]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
#: padded tokens at once: a core's caches hold a thousand (60 % faster than 8,192), a GPU wants many
BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}
#: texts last asked for whose vectors are kept: two gates over one unit then embed each text once
_REMEMBERED = 8192


class Embedder:
    """Turns texts into unit vectors, so that a dot product is the cosine.

    `folder` holds a transformers model and its tokenizer. Texts over `max_tokens` are cut, as the model was trained.
    """

    def __init__(self, folder: Path, *, max_tokens: int = 256, batch_tokens: int | None = None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.model = (
            AutoModel.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32).to(self.device).eval()
        )
        self.max_tokens = min(max_tokens, positions(self.model.config) or max_tokens)
        self.batch_tokens = batch_tokens or BATCH_TOKENS[self.device]
        self._known: dict[str, Vectors] = {}
        # gates share it, each in a thread of its own; nor may two threads use a tokenizer at once
        self._lock = threading.Lock()

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self.model.config.hidden_size)

    def encode(self, texts: Sequence[str], advance: Callable[[int], None] = lambda _: None) -> Vectors:
        """(n, width) float32 of unit length, one row for each text in order; equal texts are run once.

        `advance` hears of each batch how many texts it was.
        """
        import numpy as np

        distinct = list(dict.fromkeys(texts))
        with self._lock:
            new = [text for text in distinct if text not in self._known]
            made = dict(zip(new, self._run(new, advance), strict=True)) if new else {}
            vectors = {text: made[text] if text in made else self._known[text] for text in distinct}
            self._remember(vectors)
        return np.stack([vectors[text] for text in texts]) if texts else np.empty((0, self.width), np.float32)

    def _remember(self, vectors: dict[str, Vectors]) -> None:
        """Keep these vectors, and of the others those last asked for."""
        if len(vectors) <= _REMEMBERED:
            others = {text: vector for text, vector in self._known.items() if text not in vectors}
            surplus = max(0, len(others) + len(vectors) - _REMEMBERED)
            self._known = {**dict(islice(others.items(), surplus, None)), **vectors}

    def _run(self, texts: list[str], advance: Callable[[int], None]) -> list[Vectors]:
        def run(batch: list[list[int]]) -> Sequence[Vectors]:
            vectors = self._forward(batch)
            advance(len(batch))
            return vectors

        tokens: list[list[int]] = self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]
        return in_batches(tokens, run, size=self.batch_tokens, length=len)

    def _forward(self, tokens: list[list[int]]) -> Sequence[Vectors]:
        import torch

        padded = self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            states = self.model(**padded).last_hidden_state
            mask = padded["attention_mask"].unsqueeze(-1)
            means = (states * mask).sum(1) / mask.sum(1)
            unit: Sequence[Vectors] = torch.nn.functional.normalize(means, dim=-1).cpu().numpy()
        return unit


@lru_cache(maxsize=2)
def embedder(folder: Path, batch_tokens: int | None = None) -> Embedder:
    """The embedder of this process for a model: gates that name the same model share it."""
    return Embedder(folder, batch_tokens=batch_tokens)
