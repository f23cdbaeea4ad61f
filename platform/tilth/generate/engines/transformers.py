"""Language models by transformers' `generate`, every completion with its own random numbers and end.

Encoder-decoders too: their encoder reads the prompt, and the completion has room of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from tilth.data.batching import in_batches
from tilth.data.schema import row_seed
from tilth.generate.base import Answer, Completion, Finish, Prompt
from tilth.generate.engines.constraints import Guide, Guides
from tilth.generate.engines.prompts import Encoded, Encoder, context
from tilth.generate.engines.sampling import Draws, SeededSampling
from tilth.generate.engines.weights import Weights

if TYPE_CHECKING:
    from tilth.generate.hf import HuggingFace


@dataclass(frozen=True)
class Item:
    """One completion to make."""

    prompt: Prompt
    encoded: Encoded
    seed: int
    temperature: float
    stops: tuple[str, ...]


class TransformersEngine:
    """Implements `tilth.generate.base.Generate`."""

    def __init__(self, config: HuggingFace, folder: Path) -> None:
        self.config = config
        self.device, dtype = placed(config)
        self.model, self.tokenizer = Weights.at(folder).load(self.device, dtype)
        self.ends = _ends(self.model, self.tokenizer)
        # the model's own settings (a penalty, a temperature) would be applied on top of ours
        self.encodes = bool(self.model.config.is_encoder_decoder)
        self.model.generation_config = GenerationConfig(
            eos_token_id=self.ends,
            pad_token_id=self.ends[0],
            **(_decoding(self.model, self.ends) if self.encodes else {}),
        )
        limit = context(self.model.config, self.tokenizer, config.max_model_len)
        self.encode = Encoder(self.tokenizer, limit, config.sampling, config.chat_template, not self.encodes)
        self.guides = Guides(self.tokenizer, self.model.get_output_embeddings().weight.shape[0], self.ends)
        self.alone = threading.Lock()

    def __call__(self, prompts: Sequence[Prompt]) -> list[Answer]:
        encoded = self.encode(prompts)
        items = [item for pair in zip(prompts, encoded, strict=True) for item in self._items(*pair)]
        with self.alone, torch.inference_mode():
            made = iter(in_batches(items, self._run, size=self.config.batch_tokens, length=_length))
        return [_answer(prompt, found, made) for prompt, found in zip(prompts, encoded, strict=True)]

    def _items(self, prompt: Prompt, encoded: Encoded) -> Iterator[Item]:
        if encoded.failure is not None:
            return
        own = self.config.sampling
        temperature = own.temperature if prompt.temperature is None else prompt.temperature
        stops = (*own.stop, *prompt.stop)
        for number in range(prompt.n):
            yield Item(prompt, encoded, row_seed(prompt.seed, str(number), "sample"), temperature, stops)

    def _run(self, batch: list[Item]) -> list[Completion]:
        """The completions of one batch, prompts padded on the left, those of an encoder on the right."""
        ids, attention = self._padded([item.encoded.ids for item in batch])
        start = 1 if self.encodes else ids.shape[1]
        guides = [self.guides.of(item.prompt.shape) for item in batch]
        own = self.config.sampling
        draws = Draws(
            [item.seed for item in batch],
            [item.temperature for item in batch],
            own.top_k,
            own.top_p,
            own.repetition_penalty,
        )
        prompts = [() if self.encodes else item.encoded.ids for item in batch]
        sampling = SeededSampling(draws, self.device, start, prompts, guides)
        endings = Endings(batch, guides, start, self.tokenizer, self.ends)
        made = self.model.generate(
            input_ids=ids,
            attention_mask=attention,
            max_new_tokens=max(item.encoded.room for item in batch),
            do_sample=False,
            logits_processor=[sampling],
            stopping_criteria=[endings],
        )
        logs = torch.cat(sampling.logs, dim=1).double().cumsum(1).tolist()
        texts = made[:, start:].tolist()
        return [endings.completion(row, texts[row], logs[row]) for row in range(len(batch))]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        width = max(map(len, rows))
        pad = self.ends[0]
        ids = [[pad] * (width - len(row)) + list(row) for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        if self.encodes:
            ids = [list(row) + [pad] * (width - len(row)) for row in rows]
            mask = [line[::-1] for line in mask]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)


class Endings:
    """A stopping criterion that knows for each sequence when and why it ended: its own mark, stop text or length."""

    def __init__(
        self, batch: Sequence[Item], guides: Sequence[Guide | None], start: int, tokenizer: Any, ends: Sequence[int]
    ) -> None:
        self.batch, self.guides, self.start, self.tokenizer = batch, guides, start, tokenizer
        self.ends = frozenset(ends)
        self.ended: list[tuple[Finish, int] | None] = [None] * len(batch)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        tokens = input_ids[:, -1].tolist()
        for row, token in enumerate(tokens):
            if self.ended[row] is None:
                self.ended[row] = self._end(row, token, input_ids)
        return torch.tensor([ended is not None for ended in self.ended], device=input_ids.device)

    def _end(self, row: int, token: int, input_ids: Any) -> tuple[Finish, int] | None:
        count = input_ids.shape[1] - self.start
        guide = self.guides[row]
        if token in self.ends or token in self.batch[row].encoded.ends or (guide is not None and guide.accept(token)):
            return "stop", count
        if stops := self.batch[row].stops:
            # every token but a mark is at least one byte: a stop text that ends here begins within so many
            reach = max(len(stop.encode()) for stop in stops) + 8
            tail = self.tokenizer.decode(input_ids[row, -min(reach, count) :].tolist(), skip_special_tokens=True)
            if any(stop in tail for stop in stops):
                return "stop", count
        return ("length", count) if count >= self.batch[row].encoded.room else None

    def completion(self, row: int, tokens: Sequence[int], logs: Sequence[float]) -> Completion:
        """The completion of a sequence that ended; `logs` are running sums of log-probabilities."""
        finish, count = self.ended[row] or ("length", len(tokens))
        text = self.tokenizer.decode(tokens[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cuts = [at for stop in self.batch[row].stops if (at := text.find(stop)) >= 0]
        return Completion(text[: min(cuts)] if cuts else text, finish, count, logs[count - 1])


def placed(config: HuggingFace) -> tuple[str, str]:
    """The device and the number format of a generator's model."""
    device: str = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return device, "float32" if config.dtype == "auto" and device == "cpu" else config.dtype


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a text: the tokenizer's, and those that the model says."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return list(dict.fromkeys(token for token in (tokenizer.eos_token_id, *own) if token is not None))


def _decoding(model: Any, ends: Sequence[int]) -> dict[str, Any]:
    """What a decoder begins with, and that it writes no padding."""
    start = model.generation_config.decoder_start_token_id
    pad = model.config.pad_token_id
    first = model.config.decoder_start_token_id if start is None else start
    return {"decoder_start_token_id": first, "suppress_tokens": [pad] if pad is not None and pad not in ends else None}


def _length(item: Item) -> int:
    return len(item.encoded.ids) + item.encoded.room


def _answer(prompt: Prompt, encoded: Encoded, made: Iterator[Completion]) -> Answer:
    if encoded.failure is not None:
        return Answer(failure=encoded.failure)
    completions = tuple(next(made) for _ in range(prompt.n))
    return Answer(completions, len(encoded.ids), sum(item.tokens for item in completions))
