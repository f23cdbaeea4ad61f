"""Answers to held-out prompts while training goes on, held against those of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from tilth.data.dataset import Dataset
from tilth.data.rouge import rouge_l
from tilth.data.schema import Row
from tilth.train.chat import chat_ids
from tilth.train.config import Answers

if TYPE_CHECKING:
    from tilth.train.objectives import Parts

#: answers that a trace shows whole
SHOWN = 3


class Answering:
    """Asks for the answers of the first rows of the validation split, greedily."""

    def __init__(self, parts: Parts, settings: Answers) -> None:
        split = parts.job.stage.splits[1]
        rows = Dataset.open(parts.job.data).split(str(split)).rows()
        self.rows, self.settings, self.tokenizer = list(islice(rows, settings.rows)), settings, parts.tokenizer

    def __call__(self, model: Any) -> dict[str, Any]:
        """exact_match and rouge_l (F), both means over the rows from 0 to 1, and the first answers themselves."""
        training = model.training
        model.eval()
        with torch.inference_mode():
            said = [text for batch in self._batches() for text in self._answers(model, batch)]
        model.train(training)
        pairs = [(text.strip(), wanted(row).strip()) for text, row in zip(said, self.rows, strict=True)]
        return {
            "exact_match": sum(text == answer for text, answer in pairs) / len(pairs),
            "rouge_l": sum(rouge_l(answer, text) for text, answer in pairs) / len(pairs),
            "shown": {row["id"]: text for row, text in zip(self.rows[:SHOWN], said, strict=False)},
        }

    def _batches(self) -> list[list[Row]]:
        size = self.settings.batch
        return [self.rows[start : start + size] for start in range(0, len(self.rows), size)]

    def _answers(self, model: Any, rows: Sequence[Row]) -> list[str]:
        asked = [self._prompt(row) for row in rows]
        batch = self.tokenizer.pad({"input_ids": asked}, padding_side="left", return_tensors="pt").to(model.device)
        found = model.generate(
            **batch, max_new_tokens=self.settings.max_new_tokens, do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        start = 0 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]
        texts: list[str] = self.tokenizer.batch_decode(found[:, start:], skip_special_tokens=True)
        return texts

    def _prompt(self, row: Mapping[str, Any]) -> list[int]:
        if "messages" not in row:
            return list(self.tokenizer(row["prompt"])["input_ids"])
        return chat_ids(self.tokenizer, row["messages"][:-1], asks=True)


def wanted(row: Mapping[str, Any]) -> str:
    """The answer that a row holds."""
    return str(row["messages"][-1]["content"] if "messages" in row else row["completion"])
