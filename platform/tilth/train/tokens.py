"""Rows as the tokens that a causal language model learns, and which of them it learns; packs of them laid out."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilth.config import digest
from tilth.data.dataset import Dataset
from tilth.data.schema import Row
from tilth.train.chat import as_trl, chat_ids
from tilth.train.masking import IGNORED


@dataclass(frozen=True)
class Encoder:
    """Makes of a row the tokens and labels that TRL's SFTTrainer makes of it, cut at `max_length`."""

    tokenizer: Any
    row_type: str
    learns: str
    max_length: int

    def __call__(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """input_ids, and labels that are IGNORED where nothing is learnt."""
        ids, labels = self._whole(as_trl(self.row_type, self.learns, self.tokenizer)(row))
        return ids[: self.max_length], labels[: self.max_length]

    def _whole(self, form: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        if "input_ids" in form:
            return form["input_ids"], form["labels"]
        if "messages" in form:
            ids = chat_ids(self.tokenizer, form["messages"])
            return ids, ids
        if "text" in form:
            ids = self._ids(self._ended(form["text"]))
            return ids, ids
        prompt, completion = form["prompt"], form["completion"]
        if isinstance(prompt, str):
            before, ids = self._ids(prompt), self._ids(prompt + self._ended(completion))
        else:
            before, ids = chat_ids(self.tokenizer, prompt, asks=True), chat_ids(self.tokenizer, prompt + completion)
        if self.learns == "all":
            return ids, ids
        # where the two part, which is earlier than the prompt's end where tokens merge across it
        start = next((at for at, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), len(before))
        return ids, [IGNORED] * start + ids[start:]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def _ended(self, text: str) -> str:
        end: str = self.tokenizer.eos_token
        return text if text.endswith(end) else text + end


def packed(rows: list[Row], encode: Encoder, length: int, splits: Collection[str]) -> list[Row]:
    """The rows with `input_ids`, `labels` and `pack`, those of a pack side by side; of other splits each by itself."""
    whole: list[Row] = []
    for row in rows:
        ids, labels = ([], []) if row["reason"] else encode(row)
        empty = row["reason"] is None and all(label == IGNORED for label in labels[1:])
        reason = f"no_loss: none of its first {encode.max_length} tokens is learnt" if empty else row["reason"]
        whole.append({**row, "input_ids": ids, "labels": labels, "pack": row["id"], "reason": reason})
    found = [row for row in whole if row["reason"] is not None or row["split"] not in splits]
    for split in splits:
        own = [row for row in whole if row["reason"] is None and row["split"] == split]
        for members in best_fit([len(row["input_ids"]) for row in own], length):
            found += [{**own[member], "pack": own[members[0]]["id"]} for member in members]
    return found


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Places of `sizes` in as few packs of `room` as best-fit decreasing finds; the fullest place takes each.

    best_fit([5, 3, 4, 2], 7) → [[0, 3], [2, 1]]
    """
    packs: list[list[int]] = []
    left: list[tuple[int, int]] = []  # (room left, pack), sorted
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        at = bisect_left(left, (sizes[place], 0))
        if at == len(left):
            packs.append([place])
            insort(left, (room - sizes[place], len(packs) - 1))
        else:
            rest, pack = left.pop(at)
            packs[pack].append(place)
            insort(left, (rest - sizes[place], pack))
    return packs


def fill(dataset: Dataset, length: int) -> dict[str, Any]:
    """What a packed dataset measures: packs, tokens, and the share of the packs' places that hold one."""
    import pyarrow.compute as pc

    packs = tokens = 0
    last = None
    for table in dataset.tables(["pack", "input_ids"]):
        names = table["pack"].to_pylist()
        packs += sum(name != before for before, name in zip([last, *names], names, strict=False))
        last = names[-1]
        tokens += pc.sum(pc.list_value_length(table["input_ids"])).as_py()
    return {"packs": packs, "tokens": tokens, "filled": round(tokens / max(1, packs * length), 4)}


def tokenizer_digest(tokenizer: Any) -> str:
    """Tells tokenizers apart that give other tokens or other conversations."""
    return digest([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template, tokenizer.eos_token])
