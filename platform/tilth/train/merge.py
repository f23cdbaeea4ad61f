"""The work of the stage `export`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tilth.data.loading import MEMBERS, Card, load_pretrained, load_tokenizer
from tilth.data.transform import Inputs
from tilth.train.card import README
from tilth.train.checkpoint import scratch, upload

if TYPE_CHECKING:
    from tilth.storage import Store


def merge(model: str, dtype: str, store: Store, inputs: Inputs) -> dict[str, int]:
    """Write `model/` under `store`: whole weights, tokenizer, card, and the members of an ensemble beside them.

    Returns how many parameters it has.
    """
    source = inputs.model(model)
    folder = scratch()
    try:
        total = _whole(source, dtype, folder)
        for member in sorted(source.glob(f"{MEMBERS}/*")):
            total += _whole(member, dtype, folder / MEMBERS / member.name)
        store.remove("model")
        upload(folder, store, "model")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"trainable": 0, "total": total}


def _whole(source: Path, dtype: str, folder: Path) -> int:
    """Write one model with its adapter merged; its parameters."""
    card = Card.read(source)
    loaded = load_pretrained(source, card.objective, card.labels, dtype).model
    if dtype != "auto":
        loaded = loaded.to(getattr(torch, dtype))  # an adapter is merged in the format of its base
    loaded.save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)
    replace(card, base="", base_identity="", peft=None).write(folder)
    if (source / README).is_file():
        text = (source / README).read_text(encoding="utf-8")
        (folder / README).write_text(text.replace("library_name: peft", "library_name: transformers"), "utf-8")
    return sum(parameter.numel() for parameter in loaded.parameters())
