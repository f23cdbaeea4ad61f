"""How a label is put before a text for a language model: one place, so that training and augmentation agree."""

from __future__ import annotations


def label_prefix(label: str | None) -> str:
    """The label as words and a colon, "card_arrival" → "card arrival: "; empty without a label.

    A masked language model trained on `label_prefix(label) + text` proposes words that fit the label. It is the
    conditional BERT of Wu et al. 2019 (arXiv:1812.06705) with the label as words instead of segment ids, so that the
    model knows what an unseen label means (Kumar et al. 2020, arXiv:2003.02245, "prepend").
    """
    words = " ".join((label or "").replace("_", " ").split())
    return f"{words}: " if words else ""
