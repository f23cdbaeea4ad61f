"""What tests of proposers share: models, questions of customers of a bank, blanks in a text."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM

from tilth import models
from tilth.augment.proposers import Blank
from tilth.data.schema import Row, original
from tilth.errors import ModelError

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
CAUSAL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def resolved(name: str) -> Path:
    try:
        return models.resolve(name)
    except ModelError as error:
        pytest.skip(str(error))


def masked_bert(folder: Path) -> Path:
    """A BERT with a language-modelling head: the encoder's layers and tied embeddings, the head's own layer drawn."""
    torch.manual_seed(0)
    encoder = resolved(ENCODER)
    model = BertForMaskedLM.from_pretrained(encoder)
    torch.nn.init.eye_(model.cls.predictions.transform.dense.weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return folder


def questions(shared: Path, every: int) -> list[Row]:
    """Every so many of BANKING77's questions."""
    with open(shared / "data/banking77/train.csv", encoding="utf-8") as handle:
        found = list(csv.DictReader(handle))[::every]
    return [
        original(f"r{i}", "train", {"text": row["text"].strip(), "label": row["category"]})
        for i, row in enumerate(found)
    ]


def blanks_of(text: str, *targets: str) -> tuple[Blank, ...]:
    return tuple(Blank(text.index(target), text.index(target) + len(target)) for target in targets)
