"""Proposers: models that say which words fit a place in a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from tilth.config import EXECUTION, Component, ModelRef
from tilth.data.transform import Inputs


@dataclass(frozen=True)
class Blank:
    """A place for one word: `text[start:end]` is the word to replace; an empty span, a word to insert before it."""

    start: int
    end: int
    avoid: frozenset[str] = frozenset()
    capitals: bool = True

    def takes(self, word: str) -> bool:
        """Whether `word` may stand here: `avoid` holds casefolded words, `capitals` allows other than lower case."""
        return word.casefold() not in self.avoid and (self.capitals or word == word.lower())


@dataclass(frozen=True)
class Request:
    """A text with blanks, in order and apart from each other."""

    text: str
    blanks: tuple[Blank, ...]
    label: str | None = None


@dataclass(frozen=True)
class Proposed:
    """What a model says of one blank, in natural logarithms.

    `words` come best first and `scores` are comparable among them and with `original`, the score of the word that
    stands there. `expected` is log p of that word in its context, comparable between blanks. Either is None where
    the model cannot tell.
    """

    words: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    original: float | None = None
    expected: float | None = None


ProposeFunction = Callable[[Sequence[Request], int], list[list[Proposed]]]


class Proposer(Component, family="proposer"):
    """Proposes whole words for blanks."""

    #: Whether a blank must have a word and a space to its left.
    needs_left: ClassVar[bool] = False

    def load_proposals(self, inputs: Inputs) -> ProposeFunction:
        """Requests and the most words wanted for a blank → for each request, what is proposed for each blank."""
        raise TypeError(f"{type(self).__name__} must define load_proposals()")


class MaskedLM(Proposer):
    """Words by a masked language model, all blanks of a row masked at once (Kobayashi 2018, arXiv:1805.06201)."""

    version: ClassVar[int] = 3  # the label stands before every window of a long text

    model: ModelRef = Field(description="Hub name or directory of a masked language model, or an mlm stage, @stage.")
    label_conditional: bool = Field(
        False,
        description="Put the label before each window of the text, as an mlm stage with label_conditional trains it.",
    )
    precision: Literal["int8", "float32"] = Field(
        "int8", description="Of the linear layers' weights and inputs; int8 is the faster on CPUs and for them alone."
    )
    batch_tokens: int | Literal["auto"] = Field(
        "auto", json_schema_extra=EXECUTION, description="Padded tokens in one pass; auto: 256 on CPU, 16,384 on GPU."
    )

    def load_proposals(self, inputs: Inputs) -> ProposeFunction:
        from tilth.augment.masked_lm import MaskedProposals

        return MaskedProposals(self, inputs.model(self.model))


class CausalLM(Proposer):
    """Words by a causal language model: log p(word | left) + log p(right | left, word), which is Bayes' rule for
    p(word | left, right). Only words preceded by a space are changed, never the first."""

    needs_left: ClassVar[bool] = True

    model: ModelRef = Field(description="Hub name or directory of a causal language model, or a stage, @stage.")
    scored: int = Field(16, ge=1, description="Words, the best by p(word | left), scored with the right context too.")
    right_tokens: int = Field(3, ge=1, description="Tokens of right context in the score.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 is faster, but its rounding depends on the batch: rows may differ on retry."
    )
    batch_tokens: int | Literal["auto"] = Field(
        "auto", json_schema_extra=EXECUTION, description="Padded tokens in one pass; auto: 1,024 on CPU, 8,192 on GPU."
    )

    def load_proposals(self, inputs: Inputs) -> ProposeFunction:
        from tilth.augment.causal_lm import CausalProposals

        return CausalProposals(self, inputs.model(self.model))
