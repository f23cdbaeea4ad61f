"""Sentences of the whole dataset by label, and which of them are most like a given text."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from tilth.augment.segments import sentences
from tilth.data.schema import Row, row_seed

Arrays = dict[str, np.ndarray[Any, Any]]


def gather(rows: Iterable[Row], column: str, language: str, size: int, seed: int) -> Arrays:
    """Up to `size` sentences of each label from the train rows: arrays `text`, `label` and `root`.

    Which ones is decided by a hash of the row, so that neither their order nor memory limits the dataset.
    """
    pools: dict[str, list[tuple[int, str, str]]] = {}
    for row in rows:
        if row["split"] not in ("train", None) or not row[column]:
            continue
        pool = pools.setdefault(row.get("label") or "", [])
        for number, (start, end) in enumerate(sentences(row[column], language)):
            entry = (row_seed(seed, f"{row['id']}:{number}", "pool"), row[column][start:end], row["root"])
            if len(pool) < size:
                heapq.heappush(pool, entry)
            else:
                heapq.heappushpop(pool, entry)
    flat = [(text, label, root) for label in sorted(pools) for _, text, root in sorted(pools[label])]
    columns = zip(*flat, strict=True) if flat else ((), (), ())
    kinds = np.dtypes.StringDType()
    return {
        name: np.array(column, dtype=kinds) for name, column in zip(("text", "label", "root"), columns, strict=True)
    }


class SentencePool:
    """What `gather` found, searchable by cosine similarity of TF-IDF vectors (Salton and Buckley 1988)."""

    def __init__(self, gathered: Arrays) -> None:
        self.texts: list[str] = gathered["text"].tolist()
        self.roots: list[str] = gathered["root"].tolist()
        self.by_label: dict[str, list[int]] = {}
        for index, label in enumerate(gathered["label"].tolist()):
            self.by_label.setdefault(label, []).append(index)
        self.vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+")
        self.vectors: Any = self.vectorizer.fit_transform(self.texts) if self.texts else None

    def related(self, text: str, label: str | None, root: str, count: int) -> list[str]:
        """The `count` most similar sentences of the same label, none of this root or already in `text`; best first."""
        members = self.by_label.get(label or "", [])
        if not members:
            return []
        scores = (self.vectors[members] @ self.vectorizer.transform([text]).T).toarray()[:, 0]
        ranked = (members[index] for index in np.argsort(-scores, kind="stable"))
        found: dict[str, None] = {}
        for index in ranked:
            if self.roots[index] != root and self.texts[index] not in text:
                found.setdefault(self.texts[index])
            if len(found) == count:
                break
        return list(found)
