"""Heads on every token: classes of words (named entities, parts of speech), and answers as spans of a text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

from tilth.train.adapters import virtual_tokens
from tilth.train.masking import IGNORED
from tilth.train.objectives import Parts, cross_entropy, supervised

Span = tuple[int, int]


def token_classifier(parts: Parts) -> Any:
    """transformers' Trainer on words and their tags: of each word its first token is asked for (Devlin et al. 2019)."""
    tokenizer, length = parts.tokenizer, parts.job.stage.max_length
    index = {label: number for number, label in enumerate(parts.job.labels)}

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        found = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=length)
        words = found.word_ids()
        first = [word is not None and word != before for word, before in zip(words, [None, *words], strict=False)]
        labels = [index[row["tags"][w]] if at else IGNORED for w, at in zip(words, first, strict=True)]
        return {"input_ids": found["input_ids"], "labels": labels}

    return supervised(
        parts, encode, DataCollatorForTokenClassification(tokenizer), compute_loss_func=token_cross_entropy
    )


def question_answerer(parts: Parts) -> Any:
    """transformers' Trainer on questions and the contexts that hold their answers (Rajpurkar et al. 2016).

    The context is cut to `max_length` tokens. A question whose answer is not in what is left, or that has none, is
    answered by the first token (Rajpurkar et al. 2018, Devlin et al. 2019).
    """
    tokenizer, length = parts.tokenizer, parts.job.stage.max_length

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        found = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=length, return_offsets_mapping=True
        )
        inside = [kind == 1 for kind in found.sequence_ids()]
        answer = row["answers"][0] if row["answers"] else None
        span = None if answer is None else (answer["start"], answer["start"] + len(answer["text"]))
        kept = {name: found[name] for name in ("input_ids", "token_type_ids") if name in found}
        return {**kept, "labels": list(positions(found["offset_mapping"], inside, span))}

    loss = partial(span_loss, skip=virtual_tokens(parts.peft))
    return supervised(parts, encode, SpanCollator(DataCollatorWithPadding(tokenizer)), compute_loss_func=loss)


def positions(offsets: list[Span], inside: list[bool], span: Span | None) -> Span:
    """First and last token that touch the characters of `span` in the context; (0, 0) where they are not all there.

    `offsets` are the characters of each token, `inside` says which tokens are of the context.
    """
    if span is None:
        return 0, 0
    start, end = span
    touched = [at for at, (a, b) in enumerate(offsets) if inside[at] and a < end and start < b]
    if not touched or offsets[touched[-1]][1] < end:
        return 0, 0
    return touched[0], touched[-1]


@dataclass(frozen=True)
class SpanCollator:
    """Batches of [rows, longest] ids with `labels` [rows, 2]: first and last token of the answer."""

    inner: DataCollatorWithPadding

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.inner([{key: row[key] for key in row if key != "labels"} for row in rows]))
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def token_cross_entropy(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """`cross_entropy` of a class for every token; logits of a learnt prompt, which come first, have no labels."""
    return cross_entropy({"logits": outputs["logits"][:, -labels.shape[1] :]}, labels, num_items_in_batch)


def span_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None, *, skip: int = 0) -> torch.Tensor:
    """Mean cross-entropy of first and last token, [rows, tokens] logits each; of padding tokens too, as in BERT.

    The first `skip` tokens are a learnt prompt, which is no place for an answer.
    """
    both = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=1)[..., skip:]
    return cross_entropy({"logits": both}, labels, num_items_in_batch)
