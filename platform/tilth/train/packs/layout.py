"""How the micro-batches of all members lie in one batch, and where each finds its own in what comes of it.

Without padding: the rows of a member are laid end to end in a few sequences, as `tilth.train.packing` does it, none of
which sees another. With padding: rows below rows, for models that cannot keep rows of one sequence apart, and for
prefixes, which lie in the cache of keys and values before each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

#: tensors that a backbone may be given beside its cache
GIVEN = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")
Given = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """What the shared backbone is given. `cells`: of each member, the place of each of its tokens in a sequence."""

    inputs: Given
    members: int
    #: (rows, tokens) of each member's own micro-batch
    shapes: list[tuple[int, int]]
    cells: list[Tensor] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(value.device for value in self.inputs.values() if isinstance(value, Tensor))
        return device

    @property
    def cached(self) -> bool:
        return "past_key_values" in self.inputs

    def times(self, members: int) -> Batch:
        """The same for as many members that all have this micro-batch, each with what the backbone makes of it."""
        return Batch(self.inputs, members, self.shapes * members, self.cells * members)

    def of(self, member: int, found: Tensor) -> Tensor:
        """A member's part of what the backbone made of the batch, as it would have been alone."""
        rows, tokens = self.shapes[member]
        mine = found.view(self.members, -1, *found.shape[1:])[member]
        if self.cells:
            return mine.flatten(0, 1)[self.cells[member]]
        return mine[:rows, :tokens] if mine.dim() > 2 else mine[:rows]


def batch(given: Sequence[Given], width: int, pad_free: bool) -> Batch:
    """All members' micro-batches as one; `width` is the model's, `pad_free`: it keeps rows of a sequence apart."""
    if pad_free and not any("past_key_values" in one for one in given):
        return _in_sequences(given, width)
    return _padded(given)


def same(one: Given, other: Given) -> bool:
    """Whether two members read the same tokens, and no virtual ones before them."""
    if "input_ids" not in one or "past_key_values" in one or one.keys() != other.keys():
        return False
    return all(value.equal(other[name]) for name, value in one.items())


def _shape(given: Given) -> tuple[int, int]:
    tokens = _tokens(given)
    return int(tokens.shape[0]), int(tokens.shape[1])


def _tokens(given: Given) -> Tensor:
    tokens: Tensor = given["input_ids"] if "input_ids" in given else given["inputs_embeds"]
    return tokens


def capacity(lengths: Sequence[Sequence[int]], width: int) -> int:
    """Tokens of a sequence for members with rows of these lengths: where linear layers and attention cost least.

    A token costs a block about 24 width² operations in linear layers and 4 width x length in attention.
    """
    longest: int = max(max(rows) for rows in lengths)
    most: int = max(sum(rows) for rows in lengths)
    sizes = {most, *range(longest, most, longest)}

    def cost(size: int) -> float:
        sequences = max(len(laid(rows, size)) for rows in lengths)
        return sequences * size * (1 + size / (6 * width))

    return min(sorted(sizes), key=cost)


def laid(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Numbers of rows in sequences of `size` tokens, the first that has room, long rows first."""
    sequences: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = next((n for n, left in enumerate(room) if left >= lengths[row]), len(room))
        if place == len(room):
            sequences.append([])
            room.append(size)
        sequences[place].append(row)
        room[place] -= lengths[row]
    return sequences


def _in_sequences(given: Sequence[Given], width: int) -> Batch:
    spans = [_spans(one) for one in given]
    size = capacity([[len(span) for span in rows] for rows in spans], width)
    arranged = [laid([len(span) for span in rows], size) for rows in spans]
    count = max(map(len, arranged))
    sources, positions, cells = [], [], []
    for one, rows, sequences in zip(given, spans, arranged, strict=True):
        source, position, cell = _arrange(rows, sequences, count, size, _shape(one))
        device = one[next(iter(one))].device
        sources.append(source.to(device))
        positions.append(position.to(device))
        cells.append(cell.to(device))
    name = "inputs_embeds" if any("inputs_embeds" in one for one in given) else "input_ids"
    tokens = [one[name].flatten(0, 1)[source] for one, source in zip(given, sources, strict=True)]
    inputs = {name: torch.cat(tokens), "position_ids": torch.cat(positions)}
    return Batch(inputs, len(given), [_shape(one) for one in given], cells)


def _spans(given: Given) -> list[range]:
    """The stretches of a flattened micro-batch [rows x tokens] that read nothing outside themselves."""
    rows, tokens = _shape(given)
    if (positions := given.get("position_ids")) is not None:
        starts = (positions == 0).flatten().nonzero()[:, 0].tolist()
        return [range(start, stop) for start, stop in zip(starts, [*starts[1:], rows * tokens], strict=True)]
    mask = given.get("attention_mask")
    lengths = [tokens] * rows if mask is None else mask.sum(1).tolist()
    firsts = [0] * rows if mask is None else mask.long().argmax(1).tolist()
    begins = [row * tokens + first for row, first in enumerate(firsts)]
    return [range(begin, begin + int(length)) for begin, length in zip(begins, lengths, strict=True) if length]


def _arrange(
    spans: list[range], sequences: list[list[int]], count: int, size: int, shape: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """source [count, size]: which token lies in a cell; its position in its row; cell [rows, tokens]: where it lies.

    An empty cell holds some token at position 0, which reads itself alone and is read by nobody.
    """
    source = torch.zeros(count, size, dtype=torch.long)
    position, cell = torch.zeros_like(source), torch.zeros(shape[0] * shape[1], dtype=torch.long)
    for number, members in enumerate(sequences):
        starts = accumulate((len(spans[row]) for row in members), initial=0)
        for row, start in zip(members, starts, strict=False):
            span, stop = spans[row], start + len(spans[row])
            source[number, start:stop] = torch.arange(span.start, span.stop)
            position[number, start:stop] = torch.arange(len(span))
            cell[span.start : span.stop] = number * size + torch.arange(start, stop)
    return source, position, cell.view(shape)


def _padded(given: Sequence[Given]) -> Batch:
    shapes = [_shape(one) for one in given]
    rows, tokens = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
    prefixes = [_prefix(one) for one in given]
    before = max(prefixes)
    masks = [
        _mask(one, shape, prefix, rows, tokens, before)
        for one, shape, prefix in zip(given, shapes, prefixes, strict=True)
    ]
    inputs: Given = {"attention_mask": torch.cat(masks)}
    for name in ("input_ids", "inputs_embeds", "token_type_ids"):
        if all(name in one for one in given):
            inputs[name] = torch.cat([_stretched(one[name], rows, tokens) for one in given])
    if before:
        inputs["past_key_values"] = _caches(given, rows, before)
        inputs["position_ids"] = torch.cat([torch.arange(tokens).expand(rows, -1) + prefix for prefix in prefixes]).to(
            masks[0].device
        )
    return Batch(inputs, len(given), shapes)


def _prefix(given: Given) -> int:
    cache = given.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def _mask(given: Given, shape: tuple[int, int], prefix: int, rows: int, tokens: int, before: int) -> Tensor:
    """[rows, before + tokens]: a prefix ends where the tokens begin; a row that only fills up reads one token."""
    tensor = given.get("attention_mask")
    if tensor is None:
        tensor = torch.ones(shape[0], prefix + shape[1], dtype=torch.long, device=_tokens(given).device)
    mask = tensor.new_zeros(rows, before + tokens)
    mask[: shape[0], before - prefix : before + shape[1]] = tensor
    mask[shape[0] :, before] = 1
    return mask


def _stretched(tensor: Tensor, rows: int, tokens: int) -> Tensor:
    whole = tensor.new_zeros(rows, tokens, *tensor.shape[2:])
    whole[: tensor.shape[0], : tensor.shape[1]] = tensor
    return whole


def _caches(given: Sequence[Given], rows: int, before: int) -> DynamicCache:
    """One cache with every member's keys and values [rows, heads, before, features of a head] in each layer."""

    def stretched(tensor: Tensor) -> Tensor:
        whole = tensor.new_zeros(rows, tensor.shape[1], before, tensor.shape[3])
        whole[: tensor.shape[0], :, before - tensor.shape[2] :] = tensor
        return whole

    layers = zip(
        *([(layer.keys, layer.values) for layer in one["past_key_values"].layers] for one in given), strict=True
    )
    return DynamicCache(
        [(torch.cat([stretched(k) for k, _ in layer]), torch.cat([stretched(v) for _, v in layer])) for layer in layers]
    )
