"""What a language model is put to: the windows of a row, and how likely it finds what is scored in them.

Who reads the windows is another matter: transformers in this process, or a generator that holds the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilth.data.conditioning import label_prefix
from tilth.data.passes import IGNORED, Window
from tilth.data.schema import Row
from tilth.errors import StageError

if TYPE_CHECKING:
    from tilth.generate.base import Likelihood

Span = tuple[int, int]


@dataclass(frozen=True)
class LanguageModel:
    """The summed negative log-likelihood of what a language model is to have said.

    `stride`: texts longer than the model reads are scored in windows that begin so many tokens apart, each token once
    and with all the tokens before it that its window holds; without it they are cut: at their end as in training, or
    with `keeps_end` at their beginning, so that what is compared is scored whole.
    """

    by: Likelihood
    stride: int | None = None
    keeps_end: bool = False

    def encode(self, row: Row) -> list[Window]:
        prefix = label_prefix(row.get("label")) if self.by.conditioned else ""
        text, spans, special = scored_spans(row, self.by.tokenizer, prefix)
        coded = self.by.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        ids, sizes = list(coded["input_ids"]), _scored_bytes(text, spans, coded["offset_mapping"])
        targets = [IGNORED if size is None else token for token, size in zip(ids, sizes, strict=True)]
        found = self._windows(ids, targets, [size or 0 for size in sizes])
        windows = [part for part in found if any(target != IGNORED for target in part.targets)]
        if not windows:
            raise StageError(f"row {row['id']}: no token is left to score within {self.by.max_length} tokens")
        return windows

    def _windows(self, ids: list[int], targets: list[int], sizes: list[int]) -> list[Window]:
        most = self.by.max_length
        if self.keeps_end and len(ids) > most:
            cut = len(ids) - most
            return [Window(ids[cut:], [IGNORED, *targets[cut + 1 :]], truncated=True, bytes=sum(sizes[cut + 1 :]))]
        if self.stride is None or len(ids) <= most:
            return [Window(ids[:most], targets[:most], len(ids) > most, bytes=sum(sizes[:most]))]
        found, done = [], 0
        for start in range(0, len(ids), min(self.stride, most - 1)):
            stop = min(start + most, len(ids))
            fresh = [IGNORED] * (done - start) + targets[done:stop]
            found.append(Window(ids[start:stop], fresh, bytes=sum(sizes[done:stop])))
            done = stop
            if stop == len(ids):
                break
        return found

    def run(self, windows: list[Window]) -> list[float]:
        return self.by(windows)

    def said(self, row: Row, windows: list[Window], found: list[float]) -> dict[str, Any]:
        sizes = {"tokens": sum(item.scored for item in windows), "bytes": sum(item.bytes for item in windows)}
        return {"nll": sum(found), **sizes}


def _scored_bytes(text: str, spans: list[Span], offsets: list[Span]) -> list[int | None]:
    """For each token the UTF-8 bytes that it adds to the scored spans; None where it is not scored, as the first one.

    Spaces that a tokenizer leaves out of its offsets count for the token after them, and a character once.
    """
    sizes: list[int | None] = []
    before = 0
    for at, (start, end) in enumerate(offsets):
        span = next((first for first, last in spans if first < end and start < last), None)
        sizes.append(None if span is None or at == 0 else len(text[max(before, span) : end].encode()))
        before = max(before, end)
    return sizes


def scored_spans(row: Row, tokenizer: Any, prefix: str = "") -> tuple[str, list[Span], bool]:
    """A row as one text, the character spans whose tokens are scored, and whether to add special tokens.

    A text is scored after `prefix` (but for the first token of all, which nothing precedes), a completion after
    its prompt, a conversation in what the assistant says, to the end of its turn. StageError for preferences.
    """
    if row.get("messages"):
        return (*_conversation(row, tokenizer), False)
    if row.get("completion") is not None:
        text = row["prompt"] + row["completion"]
        return text, [(len(row["prompt"]), len(text))], True
    if row.get("text") is not None:
        text = prefix + row["text"]
        return text, [(len(prefix), len(text))], True
    raise StageError(f"row {row['id']}: perplexity needs text, prompt and completion, or messages")


def _conversation(row: Row, tokenizer: Any) -> tuple[str, list[Span]]:
    messages: list[dict[str, str]] = row["messages"]
    whole, spans = tokenizer.apply_chat_template(messages, tokenize=False), []
    for end, message in enumerate(messages, start=1):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[: end - 1], tokenize=False, add_generation_prompt=True)
            after = tokenizer.apply_chat_template(messages[:end], tokenize=False)
            if not (whole.startswith(before) and whole.startswith(after)):
                raise StageError(
                    f"row {row['id']}: the chat template renders the first {end} messages differently from the whole "
                    "conversation, so that the assistant's turns cannot be told apart; score prompts and completions"
                )
            spans.append((len(before), len(after)))
    return whole, spans
