"""Sentences to tokens of a translation model and back, whatever its family calls its languages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilth.errors import ModelError


class Tokens:
    """The tokenizer of a Marian, NLLB or M2M-100 model, set to one direction."""

    def __init__(self, folder: Path, source: str, target: str) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        multilingual = hasattr(self.tokenizer, "src_lang")
        if multilingual and not (source and target):
            raise ModelError(f"{folder.name} knows many languages: set `source` and `target` to two of its codes")
        if multilingual:
            self.tokenizer.src_lang = source
        #: id of the token that the translation must begin with, where the model wants its language first
        self.first: int | None = self._first(target) if multilingual else None
        # a Marian model of several target languages is told by a word before the sentence
        self._mark = f">>{target}<< " if target and not multilingual else ""

    def _first(self, target: str) -> int:
        known = getattr(self.tokenizer, "lang_code_to_token", {}).get(target, target)
        found: int = self.tokenizer.convert_tokens_to_ids(known)
        if found in (None, self.tokenizer.unk_token_id):
            raise ModelError(f"{target!r} is no language code of this model; its model card lists them")
        return found

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each sentence, the end mark included."""
        if not sentences:
            return []
        ids: list[list[int]] = self.tokenizer([self._mark + sentence for sentence in sentences]).input_ids
        return ids

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Plain text of each sequence, marks left out."""
        texts: list[str] = self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        return [text.strip() for text in texts]
