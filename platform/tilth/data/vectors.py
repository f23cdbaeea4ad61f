"""Vectors of all texts of a job: remembered from one look at them to the next, made on every node of a cluster.

A step that compares all rows cannot take their vectors from the workers that made the rows: 384 numbers would stay
with every row of the dataset, and rows of other splits pass through no worker. So the texts are embedded when the
rows are looked at together: in this process, or as Ray tasks where a cluster has further nodes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tilth import ui
from tilth.data.embeddings import embedder
from tilth.data.transform import Inputs

if TYPE_CHECKING:
    from tilth.data.embeddings import Vectors

#: texts that are run together, on however many nodes: a vector depends on its neighbours in the seventh decimal
CHUNK = 2048
#: texts whose vectors a process keeps, 1.5 kB each at 384 numbers; those beyond are made anew each time
REMEMBERED = 200_000


@lru_cache(maxsize=2)
def _memory(model: str, state: str) -> dict[bytes, Vectors]:
    return {}


def vectors_of(
    texts: Sequence[str], model: str, inputs: Inputs, title: str, batch_tokens: int | None = None
) -> Vectors:
    """(n, width) float32 of unit length, a row for each text in order. A CPU core makes about 200 short ones a second.

    `model` is a hub name, a directory or "@stage". A text that was asked for earlier in this process costs nothing.
    """
    known = _memory(model, inputs.urls.get(model) or inputs.pins.get(model, ""))
    keys = [_key(text) for text in texts]
    new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    made: dict[bytes, Vectors] = {}
    with ui.reporter().progress(title, len(new)) as advance:
        for vectors in encoded(list(new.values()), model, inputs, batch_tokens, spread=_has_nodes()):
            made.update(zip(list(new)[len(made) : len(made) + len(vectors)], vectors, strict=True))
            advance(len(vectors))
    if len(known) + len(made) <= REMEMBERED:
        known.update(made)
    found = [made[key] if key in made else known[key] for key in keys]
    return np.stack(found) if found else np.empty((0, 1), np.float32)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def encoded(
    texts: Sequence[str], model: str, inputs: Inputs, batch_tokens: int | None, *, spread: bool
) -> Iterator[Vectors]:
    """The vectors of one chunk of texts after the other; `spread`: each chunk is a Ray task."""
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    if not spread:
        yield from (_encode(chunk, model, inputs, batch_tokens) for chunk in chunks)
        return
    import ray

    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus)(_encode)
    for done in [task.remote(chunk, model, inputs, batch_tokens) for chunk in chunks]:
        yield ray.get(done)


def _encode(texts: Sequence[str], model: str, inputs: Inputs, batch_tokens: int | None) -> Vectors:
    return embedder(inputs.model(model), batch_tokens).encode(texts)


def _has_nodes() -> bool:
    """Whether there are further nodes; on one, this process alone uses all cores."""
    if "ray" not in sys.modules:
        return False
    import ray

    return bool(ray.is_initialized()) and sum(node["Alive"] for node in ray.nodes()) > 1
