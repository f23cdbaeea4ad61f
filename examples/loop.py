"""The same fine-tuning with no abstraction: the Parquet that a run leaves, and forty lines of PyTorch.

python examples/loop.py runs/demo/stages/augment/*/ 60
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tilth import models

BATCH = 16


def rows(dataset: Path, split: str) -> list[dict[str, str]]:
    """The accepted rows of a split, from the shards that the manifest names."""
    shards = json.loads((dataset / "dataset.json").read_text())["shards"]
    names = [shard["name"] for shard in shards if shard["split"] == split]
    return [row for name in names for row in pq.read_table(dataset / name, columns=["text", "label"]).to_pylist()]


def main(dataset: Path, steps: int) -> float:
    """Train on the train split; returns the accuracy on the test split."""
    torch.manual_seed(0)
    train, test = rows(dataset, "train"), rows(dataset, "test")
    labels = sorted({row["label"] for row in train})
    folder = models.resolve("sentence-transformers/all-MiniLM-L6-v2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)

    def tokens(batch: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        texts = [row["text"] for row in batch]
        return dict(tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt"))

    order = random.Random(0)
    for step in range(steps):
        batch = order.sample(train, min(BATCH, len(train)))
        targets = torch.tensor([labels.index(row["label"]) for row in batch])
        loss = model(**tokens(batch), labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(test), 64):
            batch = test[start : start + 64]
            predicted = model(**tokens(batch)).logits.argmax(dim=-1).tolist()
            right += sum(labels[index] == row["label"] for index, row in zip(predicted, batch, strict=True))
    print(f"accuracy on {len(test)} test rows: {right / len(test):.3f}")
    return right / len(test)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
