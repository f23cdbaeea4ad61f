"""What each kind of model says of a row: its input, its forward pass, and how its logits are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional

from tilth.data.asked_places import asked_places
from tilth.data.conditioning import label_prefix
from tilth.data.schema import Row
from tilth.errors import StageError

if TYPE_CHECKING:
    from tilth.evaluate.predictor import Predictor

Span = tuple[int, int]
IGNORED = -100
#: a span's ends are looked for among so many of the likeliest, and it has so many tokens at most, as in BERT's script
_BEST, _LONGEST = 20, 30
#: tokens of the context that two windows share
_SHARED = 128


@dataclass(frozen=True)
class Encoded:
    """Token ids of one window of a row; `targets` repeats them where they are scored and holds IGNORED elsewhere."""

    ids: list[int]
    targets: list[int] = field(default_factory=list)
    truncated: bool = False
    #: for each token its segment, its word or its characters, where the head needs them
    segments: list[int] = field(default_factory=list)
    words: list[int | None] = field(default_factory=list)
    offsets: list[Span] = field(default_factory=list)
    #: UTF-8 bytes of what its targets say
    bytes: int = 0

    @property
    def size(self) -> int:
        return len(self.ids)


class Head(Protocol):
    """One kind of model."""

    def encode(self, row: Row) -> list[Encoded]:
        """The windows of a row, one or more; StageError where there is nothing to score."""

    def run(self, batch: list[Encoded]) -> list[Any]:
        """What a forward pass finds in each window."""

    def said(self, row: Row, windows: list[Encoded], found: list[Any]) -> dict[str, Any]:
        """What of it goes into the row's `meta`."""


@dataclass(frozen=True)
class Classes:
    """A label and its probability, and with `spread` those of all labels."""

    by: Predictor
    spread: bool = False

    def encode(self, row: Row) -> list[Encoded]:
        if row.get("text") is None:
            raise StageError(f"row {row['id']}: a classifier needs a column text; the row has none")
        found, truncated = self.by.cut(row["text"])
        return [Encoded(found["input_ids"], truncated=truncated)]

    def run(self, batch: list[Encoded]) -> list[Any]:
        found = torch.softmax(self.by.forward(batch).logits.float(), dim=-1).cpu()
        best = found.max(dim=-1)
        every = found.tolist() if self.spread else [None] * len(batch)
        return list(zip(best.values.tolist(), best.indices.tolist(), every, strict=True))

    def said(self, row: Row, windows: list[Encoded], found: list[Any]) -> dict[str, Any]:
        [(value, index, every)] = found
        labels = self.by.loaded.labels
        told = {"prediction": labels[index], "confidence": round(value, 6)}
        return told if every is None else {**told, "probabilities": dict(zip(labels, every, strict=True))}


@dataclass(frozen=True)
class Likelihood:
    """The summed negative log-likelihood of what a language model is to have said.

    `stride`: texts longer than the model reads are scored in windows that begin so many tokens apart, each token once
    and with all the tokens before it that its window holds; without it they are cut: at their end as in training, or
    with `keeps_end` at their beginning, so that what is compared is scored whole.
    """

    by: Predictor
    stride: int | None = None
    keeps_end: bool = False

    def encode(self, row: Row) -> list[Encoded]:
        prefix = label_prefix(row.get("label")) if self.by.loaded.conditioned else ""
        text, spans, special = scored_spans(row, self.by.tokenizer, prefix)
        coded = self.by.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        ids, sizes = list(coded["input_ids"]), _scored_bytes(text, spans, coded["offset_mapping"])
        targets = [IGNORED if size is None else token for token, size in zip(ids, sizes, strict=True)]
        found = self._windows(ids, targets, [size or 0 for size in sizes])
        windows = [part for part in found if any(target != IGNORED for target in part.targets)]
        if not windows:
            raise StageError(f"row {row['id']}: no token is left to score within {self.by.max_length} tokens")
        return windows

    def _windows(self, ids: list[int], targets: list[int], sizes: list[int]) -> list[Encoded]:
        most = self.by.max_length
        if self.keeps_end and len(ids) > most:
            cut = len(ids) - most
            return [Encoded(ids[cut:], [IGNORED, *targets[cut + 1 :]], truncated=True, bytes=sum(sizes[cut + 1 :]))]
        if self.stride is None or len(ids) <= most:
            return [Encoded(ids[:most], targets[:most], len(ids) > most, bytes=sum(sizes[:most]))]
        found, done = [], 0
        for start in range(0, len(ids), min(self.stride, most - 1)):
            stop = min(start + most, len(ids))
            fresh = [IGNORED] * (done - start) + targets[done:stop]
            found.append(Encoded(ids[start:stop], fresh, bytes=sum(sizes[done:stop])))
            done = stop
            if stop == len(ids):
                break
        return found

    def run(self, batch: list[Encoded]) -> list[Any]:
        targets = self.by.padded([[*item.targets[1:], IGNORED] for item in batch], IGNORED)
        places = (targets.flatten() != IGNORED).nonzero()[:, 0]
        with asked_places(self.by.model, places, targets.shape[1]):  # a learnt prompt comes first
            logits = self.by.forward(batch).logits[0].float()
        each = torch.zeros(targets.numel(), dtype=torch.float32, device=logits.device)
        each[places] = functional.cross_entropy(logits, targets.flatten()[places], reduction="none")
        return _summed(each.view_as(targets), targets)

    def said(self, row: Row, windows: list[Encoded], found: list[Any]) -> dict[str, Any]:
        return {**_total(found), "bytes": sum(item.bytes for item in windows)}


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


@dataclass(frozen=True)
class Seq2Seq:
    """The same of a completion that a decoder writes to a prompt that an encoder reads."""

    by: Predictor

    def encode(self, row: Row) -> list[Encoded]:
        if row.get("completion") is None:
            raise StageError(f"row {row['id']}: an encoder-decoder is scored on prompts and completions")
        prompt, shortened = self.by.cut(row["prompt"])
        answer, ended = self.by.cut(text_target=row["completion"])
        return [Encoded(prompt["input_ids"], answer["input_ids"], shortened or ended)]

    def run(self, batch: list[Encoded]) -> list[Any]:
        targets = self.by.padded([item.targets for item in batch], IGNORED)
        logits = self.by.forward(batch, labels=targets).logits[:, -targets.shape[1] :].float()
        # two-dimensional: the kernel for (batch, classes, length) sums 49,152 classes to only 4e-5
        each = functional.cross_entropy(logits.flatten(end_dim=1), targets.flatten(), reduction="none")
        return _summed(each.view_as(targets), targets)

    def said(self, row: Row, windows: list[Encoded], found: list[Any]) -> dict[str, Any]:
        text = self.by.tokenizer.decode(windows[0].targets, skip_special_tokens=True)
        return {**_total(found), "bytes": len(text.encode())}


@dataclass(frozen=True)
class Tags:
    """A tag for each word, that of its first token, as it is learnt; words beyond what the model reads get "O"."""

    by: Predictor

    def encode(self, row: Row) -> list[Encoded]:
        if row.get("tokens") is None:
            raise StageError(f"row {row['id']}: a model that tags words needs a column tokens; the row has none")
        found, truncated = self.by.cut(row["tokens"], is_split_into_words=True)
        words = found.word_ids()
        first = [word if word != before else None for word, before in zip(words, [None, *words], strict=False)]
        return [Encoded(found["input_ids"], truncated=truncated, words=first)]

    def run(self, batch: list[Encoded]) -> list[Any]:
        width = max(item.size for item in batch)
        best = self.by.forward(batch).logits[:, -width:].argmax(dim=-1).tolist()
        return [line[: item.size] for line, item in zip(best, batch, strict=True)]

    def said(self, row: Row, windows: list[Encoded], found: list[Any]) -> dict[str, Any]:
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

    by: Predictor
    nulls: bool = False

    def encode(self, row: Row) -> list[Encoded]:
        if row.get("question") is None:
            raise StageError(f"row {row['id']}: a model that answers by spans needs a question and a context")
        most = self.by.max_length
        asked = len(self.by.tokenizer(row["question"])["input_ids"])
        found = self.by.tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=most, return_offsets_mapping=True,
            return_overflowing_tokens=True, stride=max(0, min(_SHARED, (most - asked) // 2)),
        )  # fmt: skip
        return [self._window(found, at) for at in range(len(found["input_ids"]))]

    def _window(self, found: Any, at: int) -> Encoded:
        inside = [kind == 1 for kind in found.sequence_ids(at)]
        offsets = [span if kept else (0, 0) for span, kept in zip(found["offset_mapping"][at], inside, strict=True)]
        segments = found["token_type_ids"][at] if "token_type_ids" in found else []
        return Encoded(found["input_ids"][at], segments=segments, offsets=offsets)

    def run(self, batch: list[Encoded]) -> list[Any]:
        said = self.by.forward(batch)
        width = max(item.size for item in batch)
        both = torch.stack([said.start_logits, said.end_logits], dim=1)[..., -width:].float().cpu()
        return [_best_span(both[at, :, : item.size], item.offsets) for at, item in enumerate(batch)]

    def said(self, row: Row, windows: list[Encoded], found: list[Any]) -> dict[str, Any]:
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


def _summed(each: torch.Tensor, targets: torch.Tensor) -> list[dict[str, Any]]:
    """Negative log-likelihood in nats and number of targets of each row, from those of each token."""
    sums, counts = each.double().sum(dim=1).tolist(), (targets != IGNORED).sum(dim=1).tolist()
    return [{"nll": nll, "tokens": tokens} for nll, tokens in zip(sums, counts, strict=True)]


def _total(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: sum(part[name] for part in found) for name in ("nll", "tokens")}


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
