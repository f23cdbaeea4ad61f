"""Whole-word masking (Devlin et al. 2019, arXiv:1810.04805, and its 2019 update): all pieces of a word together."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from tilth.data.schema import row_rng

IGNORED = -100


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs of a tokenizer: its mask token and the ids that a random token may be."""

    mask: int
    ordinary: tuple[int, ...]

    @staticmethod
    def of(tokenizer: Any) -> Vocabulary:
        special = set(tokenizer.all_special_ids)
        return Vocabulary(tokenizer.mask_token_id, tuple(i for i in range(len(tokenizer)) if i not in special))


def mask_words(
    ids: list[int], words: list[int], rate: float, rng: Random, vocabulary: Vocabulary
) -> tuple[list[int], list[int]]:
    """Masked ids and labels (IGNORED where nothing is asked) of one row.

    `words[i]` numbers the word that token i belongs to; negative: never masked. At least one word is chosen.
    Of the chosen words 80 % become the mask token, 10 % random tokens, 10 % stay as they are.
    """
    candidates = sorted({word for word in words if word >= 0})
    count = min(len(candidates), max(1, round(rate * len(candidates))))
    fate = {word: rng.random() for word in rng.sample(candidates, count)}
    masked, labels = list(ids), [IGNORED] * len(ids)
    for position, word in enumerate(words):
        if word not in fate:
            continue
        labels[position] = ids[position]
        if fate[word] < 0.8:
            masked[position] = vocabulary.mask
        elif fate[word] < 0.9:
            masked[position] = rng.choice(vocabulary.ordinary)
    return masked, labels


@dataclass
class MaskingCollator:
    """Masks rows anew in every epoch; seeded by row id, so that a resumed run masks as the first one would have."""

    tokenizer: Any
    rate: float
    seed: int
    epoch: int = 0
    _vocabulary: Vocabulary = field(init=False)

    def __post_init__(self) -> None:
        self._vocabulary = Vocabulary.of(self.tokenizer)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of tensors [rows, longest]: input_ids, attention_mask, labels."""
        import torch

        pairs = [self._masked(row) for row in rows]
        batch: dict[str, Any] = self.tokenizer.pad({"input_ids": [ids for ids, _ in pairs]}, return_tensors="pt")
        width = batch["input_ids"].shape[1]
        batch["labels"] = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in pairs])
        return batch

    def _masked(self, row: dict[str, Any]) -> tuple[list[int], list[int]]:
        rng = row_rng(self.seed, row["id"], f"mask epoch {self.epoch}")
        return mask_words(row["input_ids"], row["words"], self.rate, rng, self._vocabulary)
