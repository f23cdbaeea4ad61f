"""Forward passes of a trained model over rows, batched by length; needs no Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from tilth.data.batching import in_batches
from tilth.data.conditioning import label_prefix
from tilth.data.schema import Row
from tilth.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int]
IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """Token ids of one row; `targets` repeats them where they are scored and holds IGNORED elsewhere."""

    ids: list[int]
    targets: list[int] = field(default_factory=list)
    truncated: bool = False


class Predictor:
    """A trained model in a directory, ready to say what it makes of rows.

    dtype: a torch dtype's name, or "auto" for that of the weights. In bfloat16 what is said of a row depends on
    the batch that it is in: of SmolLM2-135M a question's nll moves by 0.2 %.
    """

    def __init__(self, folder: Path, *, batch_tokens: int = 2048, dtype: str = "float32", device: str = "auto") -> None:
        from tilth.data.loading import load_trained

        self.loaded = load_trained(folder, device=device, dtype=dtype)
        self.model: Any = self.loaded.model
        self.tokenizer: Any = self.loaded.tokenizer
        self.batch_tokens = batch_tokens
        if self.loaded.objective == "reward":
            raise StageError(f"{folder} is a reward model: its own stage tells what it makes of held-out pairs")
        if self.loaded.objective == "masked_lm":
            raise StageError(
                f"{folder} is a masked language model: it has no perplexity; evaluate what is trained on it"
            )

    @property
    def classifies(self) -> bool:
        return bool(self.loaded.objective == "classification")

    def predict(self, rows: list[Row]) -> list[Row]:
        """The rows with the model's word in `meta`, see `Predict`. StageError where a row has nothing to score."""
        encode, run = (self._text, self._classify) if self.classifies else (self._scored, self._score)
        items = [encode(row) for row in rows]
        found = in_batches(items, run, size=self.batch_tokens, length=lambda item: len(item.ids))
        return [
            {**row, "meta": {**row["meta"], **said, "truncated": item.truncated}}
            for row, said, item in zip(rows, found, items, strict=True)
        ]

    def _text(self, row: Row) -> Encoded:
        if row.get("text") is None:
            raise StageError(f"row {row['id']}: a classifier needs a column text; the row has none")
        return self._encoded(self.tokenizer(row["text"]))

    def _encoded(self, found: Any) -> Encoded:
        ids = list(found["input_ids"])
        return Encoded(ids[: self.max_length], truncated=len(ids) > self.max_length)

    @property
    def max_length(self) -> int:
        """Tokens that the model can attend to."""
        limit = self.loaded.max_length or getattr(self.model.config, "max_position_embeddings", None)
        return int(limit or self.tokenizer.model_max_length)

    def _classify(self, batch: list[Encoded]) -> list[dict[str, Any]]:
        probabilities = torch.softmax(self._logits(batch).float(), dim=-1).cpu()
        best = probabilities.max(dim=-1)
        labels = self.loaded.labels
        return [
            {"prediction": labels[index], "confidence": round(value, 6)}
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _scored(self, row: Row) -> Encoded:
        """Tokens of the row's text; scored are those that touch a span which the model is to have said."""
        prefix = label_prefix(row.get("label")) if self.loaded.conditioned else ""
        text, spans, special = scored_spans(row, self.tokenizer, prefix)
        found = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        touched = [any(a < end and start < b for a, b in spans) for start, end in found["offset_mapping"]]
        encoded = self._encoded(found)
        targets = [t if hit else IGNORED for t, hit in zip(encoded.ids, touched, strict=False)]
        if all(target == IGNORED for target in targets[1:]):
            raise StageError(f"row {row['id']}: no token is left to score within {self.max_length} tokens")
        return Encoded(encoded.ids, targets, encoded.truncated)

    def _score(self, batch: list[Encoded]) -> list[dict[str, Any]]:
        logits = self._logits(batch).float()
        targets = self._padded([[*item.targets[1:], IGNORED] for item in batch], IGNORED)
        # two-dimensional: the kernel for (batch, classes, length) sums 49,152 classes to only 4e-5
        each = functional.cross_entropy(logits.flatten(end_dim=1), targets.flatten(), reduction="none")
        each = each.view_as(targets)
        sums, counts = each.double().sum(dim=1).tolist(), (targets != IGNORED).sum(dim=1).tolist()
        return [{"nll": nll, "tokens": tokens} for nll, tokens in zip(sums, counts, strict=True)]

    def _logits(self, batch: list[Encoded]) -> Tensor:
        ids = self._padded([item.ids for item in batch], self.tokenizer.pad_token_id or 0)
        mask = self._padded([[1] * len(item.ids) for item in batch], 0)
        with torch.inference_mode():
            logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits

    def _padded(self, rows: list[list[int]], fill: int) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=self.model.device)


def scored_spans(row: Row, tokenizer: Any, prefix: str = "") -> tuple[str, list[Span], bool]:
    """A row as one text, the character spans whose tokens are scored, and whether to add special tokens.

    A text is scored after `prefix` (but for the first token of all, which nothing precedes), a completion after
    its prompt, a conversation in what the assistant says, to the end of its turn. StageError for preferences.
    """
    if row.get("messages"):
        return (*_conversation(row["messages"], tokenizer), False)
    if row.get("completion") is not None:
        text = row["prompt"] + row["completion"]
        return text, [(len(row["prompt"]), len(text))], True
    if row.get("text") is not None:
        text = prefix + row["text"]
        return text, [(len(prefix), len(text))], True
    raise StageError(f"row {row['id']}: perplexity needs text, prompt and completion, or messages")


def _conversation(messages: list[dict[str, str]], tokenizer: Any) -> tuple[str, list[Span]]:
    spans = []
    for end, message in enumerate(messages, start=1):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[: end - 1], tokenize=False, add_generation_prompt=True)
            after = tokenizer.apply_chat_template(messages[:end], tokenize=False)
            spans.append((len(before), len(after)))
    return tokenizer.apply_chat_template(messages, tokenize=False), spans
