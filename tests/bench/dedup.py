"""Duplicates over a whole job: ours beside datasketch's own MinHash index, datatrove, and a full matrix of vectors.

Texts are BANKING77's questions with words put in, so that a part of them repeats another. Ours and datasketch's index
decide the same: a text goes that is near one that stays. Ours verifies its candidates, datasketch and datatrove do not;
datatrove drops all but one of a cluster, and its four steps read and write files, as they are made to. Vectors are
there already: embedding costs both sides the same, 200 texts a second and core.

datatrove is measured where the peer environment (`--peer`) has it: `pip install "datatrove[processing]" spacy`, seen
with 0.10.1. All sides are in processes of their own, with one thread.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from tests.bench.paired import Facts, Worker, paired, serve_one, timed
from tests.bench.result import Options, Result, banking_texts, compared

SUMMARY = "near and semantic duplicates, over datasketch's MinHashLSH, datatrove and a full matrix"
THRESHOLD, SHINGLE, COSINE = 0.8, 2, 0.95
#: of 128 permutations, so that a pair at the threshold is found with a probability of 0.99
BANDS, BAND_ROWS = 21, 6
_FILLER = ("please", "kindly", "today", "again", "quickly", "now", "thanks", "really")


def varied(count: int) -> list[str]:
    """Questions with up to six words put in at random places: some are near-duplicates of another, most are not."""
    rng = random.Random(0)
    texts = []
    for text in banking_texts(count):
        words = text.split()
        for _ in range(rng.randrange(7)):
            words.insert(rng.randrange(len(words) + 1), rng.choice(_FILLER))
        texts.append(" ".join(words))
    return texts


def near_duplicates(texts: list[str]) -> int:
    from tilth.augment.near_duplicates import NearDuplicates
    from tilth.data.schema import generated
    from tilth.data.transform import Inputs

    rows = [generated(f"{number:07d}", "m", 1, None, {"text": text}) for number, text in enumerate(texts)]
    return len(NearDuplicates(threshold=THRESHOLD, shingle=SHINGLE).decide(rows, Inputs()))


def datasketch_index(texts: list[str]) -> int:
    from datasketch import MinHash, MinHashLSH

    from tilth.data.dedup import shingles

    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    gone = 0
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([item.encode() for item in shingles(text, SHINGLE)])
        if index.query(sketch):
            gone += 1
        else:
            index.insert(str(number), sketch)
    return gone


def datatrove(texts: list[str]) -> int:
    """Its four steps, one task after the other in this process; bands as ours has them at this threshold."""
    from datatrove.data import Document
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.utils.logging import logger

    logger.remove()
    config = MinhashConfig(n_grams=SHINGLE, num_buckets=BANDS, hashes_per_bucket=BAND_ROWS)
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
    kept: list[str] = []

    def counted(data: Any, rank: int, world_size: int) -> Iterator[Any]:
        for document in data:
            kept.append(document.id)
            yield document

    with tempfile.TemporaryDirectory() as folder:

        def run(name: str, *steps: Any, tasks: int = 1) -> None:
            LocalPipelineExecutor(list(steps), tasks=tasks, workers=1, logging_dir=f"{folder}/logs/{name}").run()

        run("signatures", documents, MinhashDedupSignature(f"{folder}/signatures", config))
        run("buckets", MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config), tasks=BANDS)
        run("clusters", MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", config))
        run("filter", documents, MinhashDedupFilter(f"{folder}/remove"), counted)
    return len(texts) - len(kept)


def vectors(count: int) -> Any:
    """Unit vectors of 384 numbers around 200 centres, one in five within a cosine of 0.95 of an earlier one."""
    import numpy as np

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, 384))
    found = centres[rng.integers(200, size=count)] + rng.normal(size=(count, 384))
    copies = np.flatnonzero(rng.random(count) < 0.2)[1:]
    found[copies] = found[rng.integers(copies)] + 0.2 * rng.normal(size=(len(copies), 384))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def bucketed(given: Any) -> int:
    import numpy as np

    from tilth.data.alike import twins

    return len(twins(given, np.ones(len(given), bool), COSINE))


def full_matrix(given: Any) -> int:
    """Every vector against every one that stays, in blocks that fit the memory."""
    import numpy as np

    kept = np.zeros(len(given), bool)
    for start in range(0, len(given), 1024):
        block = given[start : start + 1024]
        near = block @ given[: start + len(block)].T >= COSINE
        for row in range(len(block)):
            kept[start + row] = not (near[row, : start + row] & kept[: start + row]).any()
    return int((~kept).sum())


#: what each side works on, and how many of it it drops
SIDES: dict[str, tuple[Callable[[int], Any], Callable[[Any], int]]] = {
    "near_duplicates": (varied, near_duplicates),
    "datasketch MinHashLSH": (varied, datasketch_index),
    "datatrove": (varied, datatrove),
    "semantic duplicates, buckets": (vectors, bucketed),
    "all pairs": (vectors, full_matrix),
}


def side(name: str, arguments: Sequence[str]) -> Callable[[], Facts]:
    make, work = SIDES[name]
    given = make(int(arguments[0]))
    dropped: list[int] = []
    return lambda: {**timed(len(given), lambda: dropped.append(work(given))), "dropped": dropped[-1]}


def missing(options: Options) -> str | None:
    return None


def measure(options: Options) -> Iterator[Result]:
    texts, given = options.size(4000, 20_000), options.size(20_000, 60_000)
    yield _measured("near_duplicates", "datasketch MinHashLSH", texts, options, sys.executable)
    if options.peer and _has_datatrove(options.peer):
        yield _measured("near_duplicates", "datatrove", texts, options, options.peer)
    yield _measured("semantic duplicates, buckets", "all pairs", given, options, sys.executable)


def _has_datatrove(python: str) -> bool:
    return subprocess.run([python, "-c", "import datatrove"], capture_output=True, check=False).returncode == 0


def _measured(name: str, peer: str, size: int, options: Options, python: str) -> Result:
    with ExitStack() as stack:
        a = stack.enter_context(Worker(__spec__.name, name, str(size)))
        b = stack.enter_context(Worker(__spec__.name, peer, str(size), python=python))
        found = paired(a, b, options.rounds)
    note = f"{size:,} rows, {found.a[-1]['dropped']:,} and {found.b[-1]['dropped']:,} dropped"
    return compared(f"{name} / {peer}", found, 1.0, note)


if __name__ == "__main__":
    serve_one({name: lambda arguments, name=name: side(name, arguments) for name in SIDES})  # type: ignore[misc]
