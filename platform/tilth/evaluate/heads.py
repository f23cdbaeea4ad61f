"""What each kind of model says of a row: its input, its forward pass, and how its logits are read.

Language models are in `language_model`: they may be read by another engine than transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

from tilth.data.passes import IGNORED, Passes, Window
from tilth.data.schema import Row
from tilth.errors import StageError

Span = tuple[int, int]
#: a span's ends are looked for among so many of the likeliest, and it has so many tokens at most, as in BERT's script
_BEST, _LONGEST = 20, 30
#: tokens of the context that two windows share
_SHARED = 128
_SPOILT = (
    "what the model finds is no number: its weights hold some that are none, as after a training that diverged, or are "
    "too large for their number format; train it anew, or set dtype to float32"
)


class Head(Protocol):
    """One kind of model."""

    def encode(self, row: Row) -> list[Window]:
        """The windows of a row, one or more; StageError where there is nothing to score."""

    def run(self, windows: list[Window]) -> list[Any]:
        """What the model finds in each window."""

    def said(self, row: Row, windows: list[Window], found: list[Any]) -> dict[str, Any]:
        """What of it goes into the row's `meta`."""


def predicted(head: Head, rows: list[Row]) -> list[Row]:
    """The rows with the model's word in `meta`, see `Predict`. StageError where a row has nothing to score."""
    windows = [head.encode(row) for row in rows]
    found = iter(head.run([item for parts in windows for item in parts]))
    said = [head.said(row, parts, [next(found) for _ in parts]) for row, parts in zip(rows, windows, strict=True)]
    for row, told in zip(rows, said, strict=True):
        if not math.isfinite(told.get("nll", 0.0)):
            raise StageError(f"row {row['id']}: {_SPOILT}")
    return [
        {**row, "meta": {**row["meta"], **told, "truncated": any(item.truncated for item in parts)}}
        for row, told, parts in zip(rows, said, windows, strict=True)
    ]


def _numbers(logits: torch.Tensor) -> torch.Tensor:
    """The same; StageError where they are none, of which the first label would be the likeliest one."""
    if bool(logits.isnan().any()):
        raise StageError(_SPOILT)
    return logits


@dataclass(frozen=True)
class Classes:
    """A label and its probability, and with `spread` those of all labels."""

    by: Passes
    spread: bool = False

    def encode(self, row: Row) -> list[Window]:
        if row.get("text") is None:
            raise StageError(f"row {row['id']}: a classifier needs a column text; the row has none")
        found, truncated = self.by.cut(row["text"])
        return [Window(found["input_ids"], truncated=truncated)]

    def run(self, windows: list[Window]) -> list[Any]:
        return self.by.over(windows, self._pass)

    def _pass(self, batch: list[Window]) -> list[Any]:
        found = torch.softmax(_numbers(self.by.forward(batch).logits.float().cpu()), dim=-1)
        best = found.max(dim=-1)
        every = found.tolist() if self.spread else [None] * len(batch)
        return list(zip(best.values.tolist(), best.indices.tolist(), every, strict=True))

    def said(self, row: Row, windows: list[Window], found: list[Any]) -> dict[str, Any]:
        [(value, index, every)] = found
        labels = self.by.loaded.labels
        told = {"prediction": labels[index], "confidence": round(value, 6)}
        return told if every is None else {**told, "probabilities": dict(zip(labels, every, strict=True))}


@dataclass(frozen=True)
class Seq2Seq:
    """The negative log-likelihood of a completion that a decoder writes to a prompt that an encoder reads."""

    by: Passes

    def encode(self, row: Row) -> list[Window]:
        if row.get("completion") is None:
            raise StageError(f"row {row['id']}: an encoder-decoder is scored on prompts and completions")
        prompt, shortened = self.by.cut(row["prompt"])
        answer, ended = self.by.cut(text_target=row["completion"])
        text = row["completion"]
        if ended:  # what is left of it
            text = self.by.tokenizer.decode(answer["input_ids"], skip_special_tokens=True)
        return [Window(prompt["input_ids"], answer["input_ids"], shortened or ended, bytes=len(text.encode()))]

    def run(self, windows: list[Window]) -> list[Any]:
        return self.by.over(windows, self._pass)

    def _pass(self, batch: list[Window]) -> list[Any]:
        targets = self.by.padded([item.targets for item in batch], IGNORED)
        logits = self.by.forward(batch, labels=targets).logits[:, -targets.shape[1] :].float()
        # two-dimensional: the kernel for (batch, classes, length) sums 49,152 classes to only 4e-5
        each = functional.cross_entropy(logits.flatten(end_dim=1), targets.flatten(), reduction="none")
        sums: list[float] = each.view_as(targets).double().sum(dim=1).tolist()
        return sums

    def said(self, row: Row, windows: list[Window], found: list[Any]) -> dict[str, Any]:
        return {"nll": found[0], "tokens": windows[0].scored, "bytes": windows[0].bytes}


@dataclass(frozen=True)
class Tags:
    """A tag for each word, that of its first token, as it is learnt; words beyond what the model reads get "O"."""

    by: Passes

    def encode(self, row: Row) -> list[Window]:
        if row.get("tokens") is None:
            raise StageError(f"row {row['id']}: a model that tags words needs a column tokens; the row has none")
        found, truncated = self.by.cut(row["tokens"], is_split_into_words=True)
        words = found.word_ids()
        first = [word if word != before else None for word, before in zip(words, [None, *words], strict=False)]
        return [Window(found["input_ids"], truncated=truncated, words=first)]

    def run(self, windows: list[Window]) -> list[Any]:
        return self.by.over(windows, self._pass)

    def _pass(self, batch: list[Window]) -> list[Any]:
        width = max(item.size for item in batch)
        found = self.by.forward(batch).logits[:, -width:].cpu()
        return [_numbers(line[: item.size]).argmax(dim=-1).tolist() for line, item in zip(found, batch, strict=True)]

    def said(self, row: Row, windows: list[Window], found: list[Any]) -> dict[str, Any]:
        tags = ["O"] * len(row["tokens"])
        for word, index in zip(windows[0].words, found[0], strict=True):
            if word is not None:
                tags[word] = self.by.loaded.labels[index]
        return {"prediction": tags}


@dataclass(frozen=True)
class Spans:
    """The likeliest span of the context, over all windows of a long one (Devlin et al. 2019, section 4.2).

    `nulls`: a question may have no answer, which the first token stands for (section 4.3); then the answer is empty
    where that is likelier than every span.
    """

    by: Passes
    nulls: bool = False

    def encode(self, row: Row) -> list[Window]:
        if row.get("question") is None:
            raise StageError(f"row {row['id']}: a model that answers by spans needs a question and a context")
        most = self.by.max_length
        asked = len(self.by.tokenizer(row["question"])["input_ids"])
        found = self.by.tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=most, return_offsets_mapping=True,
            return_overflowing_tokens=True, stride=max(0, min(_SHARED, (most - asked) // 2)),
        )  # fmt: skip
        return [self._window(found, at) for at in range(len(found["input_ids"]))]

    def _window(self, found: Any, at: int) -> Window:
        inside = [kind == 1 for kind in found.sequence_ids(at)]
        offsets = [span if kept else (0, 0) for span, kept in zip(found["offset_mapping"][at], inside, strict=True)]
        segments = found["token_type_ids"][at] if "token_type_ids" in found else []
        return Window(found["input_ids"][at], segments=segments, offsets=offsets)

    def run(self, windows: list[Window]) -> list[Any]:
        return self.by.over(windows, self._pass)

    def _pass(self, batch: list[Window]) -> list[Any]:
        said = self.by.forward(batch)
        width = max(item.size for item in batch)
        both = torch.stack([said.start_logits, said.end_logits], dim=1)[..., -width:].float().cpu()
        return [_best_span(_numbers(both[at, :, : item.size]), item.offsets) for at, item in enumerate(batch)]

    def said(self, row: Row, windows: list[Window], found: list[Any]) -> dict[str, Any]:
        score, start, end = max(best for best, _ in found)
        nothing = self.nulls and min(null for _, null in found) > score
        return {"prediction": "" if nothing else row["context"][start:end]}


def _best_span(logits: torch.Tensor, offsets: list[Span]) -> tuple[tuple[float, int, int], float]:
    """(score, start, end) in characters of the likeliest span of logits (2, tokens), and the score of no answer."""
    inside = torch.tensor([end > start for start, end in offsets])
    kept = logits.masked_fill(~inside, -torch.inf)
    size = min(_BEST, len(offsets))
    starts, ends = kept[0].topk(size).indices, kept[1].topk(size).indices
    scores = kept[0][starts][:, None] + kept[1][ends][None, :]
    length = ends[None, :] - starts[:, None]
    scores = scores.masked_fill((length < 0) | (length >= _LONGEST), -torch.inf)
    first, last = divmod(int(scores.argmax()), size)
    best = float(scores[first, last]), offsets[int(starts[first])][0], offsets[int(ends[last])][1]
    return best, float(logits[0, 0] + logits[1, 0])
