"""Tokens that may follow, for answers of a given shape: one of several texts, or JSON of a schema."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from tilth.generate.shape import Shape

Node = dict[int, Any]


class Guide(Protocol):
    """Follows one sequence. See `tilth.generate.engines.sampling.Constraint`."""

    def allowed(self) -> Any:
        """A mask over the vocabulary, true for tokens that may follow; at least one is."""

    def accept(self, token: int) -> bool:
        """Go on by a token; whether nothing can follow it."""


class Guides:
    """Makes guides for the shapes that prompts ask for; what a shape costs to prepare is paid once."""

    def __init__(self, tokenizer: Any, size: int, ends: Sequence[int]) -> None:
        self.tokenizer, self.size, self.ends = tokenizer, size, tuple(ends)
        self._made: dict[Shape, Callable[[], Guide | None]] = {}
        self._compiler: Any = None

    def of(self, shape: Shape | None) -> Guide | None:
        """A guide at the start of an answer; None where there is nothing to keep to, or nothing that could."""
        if shape is None:
            return None
        if shape not in self._made:
            self._made[shape] = self._choices(shape) if shape.choices else self._schema(shape)
        return self._made[shape]()

    def _choices(self, shape: Shape) -> Callable[[], Guide]:
        root: Node = {}
        for text in shape.choices:
            node = root
            for token in self.tokenizer(text, add_special_tokens=False).input_ids:
                node = node.setdefault(token, {})
            # where one choice begins another, the end of the text tells them apart
            node.update({end: {} for end in self.ends})
        return lambda: Trie(root, self.size, self.ends)

    def _schema(self, shape: Shape) -> Callable[[], Guide | None]:
        """xgrammar (Dong et al. 2024, arXiv:2411.15100); without it, or for what it does not know, no guide."""
        try:
            import xgrammar
        except ModuleNotFoundError:
            return lambda: None
        if self._compiler is None:
            info = xgrammar.TokenizerInfo.from_huggingface(
                self.tokenizer, vocab_size=self.size, stop_token_ids=list(self.ends)
            )
            self._compiler = xgrammar.GrammarCompiler(info)
        try:
            # free whitespace is where small models lose themselves
            grammar = self._compiler.compile_json_schema(shape.schema, any_whitespace=False)
        except (RuntimeError, ValueError):  # a feature that it lacks: the answer is checked afterwards in any case
            return lambda: None
        return lambda: Grammar(
            xgrammar.GrammarMatcher(grammar), xgrammar.allocate_token_bitmask(1, self.size), self.size
        )


class Trie:
    """One of several texts, each by its own tokens."""

    def __init__(self, root: Node, size: int, ends: Sequence[int]) -> None:
        self.node, self.size, self.ends = root, size, frozenset(ends)

    def allowed(self) -> torch.Tensor:
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[list(self.node) or list(self.ends)] = True
        return mask

    def accept(self, token: int) -> bool:
        self.node = self.node.get(token, {})
        return self.node.keys() <= self.ends


class Grammar:
    """JSON of a schema, by xgrammar's matcher."""

    def __init__(self, matcher: Any, bits: Any, size: int) -> None:
        self.matcher, self.bits, self.size = matcher, bits, size

    def allowed(self) -> torch.Tensor:
        self.matcher.fill_next_token_bitmask(self.bits)
        mask: torch.Tensor = (self.bits[0].unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1
        return mask.flatten()[: self.size].bool()

    def accept(self, token: int) -> bool:
        self.matcher.accept_token(token)
        return bool(self.matcher.is_terminated())
