"""Batches with the ids of their rows beside them, in which what only fills up asks nothing of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tilth.train.masking import IGNORED, MaskingCollator
from tilth.train.multitask import TASKS
from tilth.train.watch import ROWS, TOKENS

_INPUTS = {"input_ids", "token_type_ids", "labels", "words", "prompt_ids", "chosen_ids", "rejected_ids"}
_INPUTS |= {"completion_ids", "KL_completion_ids", "label", "margin", "better", "weights"}


@dataclass(frozen=True)
class Collate:
    """Batches by `inner`, with the row ids beside them; rows without an id ask nothing of the model."""

    inner: Callable[[list[dict[str, Any]]], Any]
    tasks: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        keep = _INPUTS | ({"id"} if isinstance(self.inner, MaskingCollator) else set())
        batch = dict(self.inner([{key: row[key] for key in row if key in keep} for row in rows]))
        # rows without an id only fill up the last batch
        batch[ROWS] = [row["id"] for row in rows]
        batch[TOKENS] = [_tokens(row) for row in rows]
        if self.tasks:
            batch[TASKS] = [row["task"] for row in rows]
        for index, row in enumerate(rows):
            if not row["id"] and "labels" in batch:
                batch["labels"][index] = IGNORED
            elif not row["id"] and "weights" in batch:
                batch["weights"][index] = batch["real"][index] = 0
            elif not row["id"]:  # pairs: the better answers of the batch, then the worse ones
                batch["completion_mask"][index :: len(rows)] = 0
                if "KL_completion_mask" in batch:  # single answers: the exchanged ones too
                    batch["KL_completion_mask"][index] = 0
        return batch


def _tokens(row: dict[str, Any]) -> int:
    """Tokens that a row puts before the model; a pair puts its prompt there twice."""
    if "completion_ids" in row:
        return len(row["prompt_ids"]) + len(row["completion_ids"])
    if "chosen_ids" in row:
        return 2 * len(row.get("prompt_ids", ())) + len(row["chosen_ids"]) + len(row["rejected_ids"])
    return len(row["input_ids"])
