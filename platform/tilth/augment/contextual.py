"""Contextual augmentation: a language model changes, inserts or deletes words where the context allows it.

How do I locate my card?  →  How do I find my card?
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tilth.augment.base import Augmenter, VariantsFunction
from tilth.augment.proposers import Proposer
from tilth.config import Component
from tilth.data.transform import Inputs
from tilth.errors import Problem


class Sampling(Component):
    """How a word is drawn from those proposed."""

    top_k: int = Field(20, ge=1, le=1000, description="Only the k best words.")
    top_p: float = Field(0.95, gt=0, le=1, description="Only the best words that together hold this probability.")
    temperature: float = Field(1.0, gt=0, description="Below 1 favours the best word, above 1 the others.")
    max_loss: float = Field(
        6.0, gt=0, description="A word this much less log-probable (nats) than the one that it replaces is not taken."
    )
    rounds: int = Field(
        2, ge=1, le=10, description="Passes; each after the first reconsiders the least certain edits given the others."
    )


class Contextual(Augmenter):
    """Words changed by a language model that sees the rest of the text (Kobayashi 2018; Wu et al. 2019).

    All edits of a row are proposed together; then the least certain are blanked and proposed again given the others,
    fewer in each round, so that edits agree (mask-predict: Ghazvininejad et al. 2019, arXiv:1904.09324). Numbers,
    names, addresses, negations, the label's words and `protect` are never changed.
    """

    version: ClassVar[int] = 2  # of variants with the same words one is kept

    proposer: Proposer = Field(description="The model that proposes words.")
    action: Literal["substitute", "insert", "delete"] = Field(
        "substitute", description="Replace words, insert words, or delete the words that the model expects most."
    )
    edits: float = Field(0.15, gt=0, le=1, description="Share of the words that is edited.")
    min_edits: int = Field(1, ge=0, description="Edits in a row at least, where it has as many words free to change.")
    max_edits: int = Field(10, ge=1, description="Edits in a row at most.")
    protect: tuple[str, ...] = Field((), description="Words and phrases that stay, capitals aside.")
    function_words: bool = Field(False, description="Edit and propose words like `the`, `of`, `my` too (English).")
    sampling: Sampling = Field(default_factory=Sampling, description="How a word is drawn.")

    @property
    def made_by(self) -> str | None:
        return str(getattr(self.proposer, "model", None) or self.proposer.kind)

    def check(self) -> list[Problem]:
        if self.min_edits <= self.max_edits:
            return []
        return [Problem("min_edits", f"is {self.min_edits}, above max_edits {self.max_edits}", "raise max_edits")]

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        from tilth.augment.edits import Editor

        return Editor(self, self.proposer.load_proposals(inputs))
