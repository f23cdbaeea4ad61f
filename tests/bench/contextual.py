"""Rows a second of contextual substitution: ours beside nlpaug on the same weights, rows and share of words.

    python tests/bench/contextual.py --peer PEER_VENV/bin/python [--model DIR] [--rows 64] [--json]

PEER_VENV is an environment with torch, nlpaug 1.1.11 and the transformers that it works with (<5). Without --model
the weights are all-MiniLM-L6-v2 with a language-modelling head: what is measured is speed, not taste.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from paired import Worker, paired, serve

# nlpaug's own default
SHARE = 0.3
Augment = Callable[[list[str]], list[str]]


def ours(model: str, rounds: int = 2) -> Augment:
    from tilth.augment.contextual import Contextual, Sampling
    from tilth.augment.proposers import MaskedLM
    from tilth.data.schema import original
    from tilth.data.transform import Inputs

    config = Contextual(
        proposer=MaskedLM(model=model), edits=SHARE, function_words=True, sampling=Sampling(rounds=rounds)
    )
    run = config.load(Inputs(), {})

    def augment(texts: list[str]) -> list[str]:
        rows = run([original(str(index), "train", {"text": text}) for index, text in enumerate(texts)])
        return [row["text"] for row in rows if row["parent"]]

    return augment


def nlpaug_list(model: str) -> Augment:
    from nlpaug.augmenter.word import ContextualWordEmbsAug

    augmenter = ContextualWordEmbsAug(
        model_path=model, model_type="bert", action="substitute", aug_p=SHARE, aug_max=10, top_k=20, device="cpu"
    )
    return lambda texts: list(augmenter.augment(texts))


def nlpaug_rows(model: str) -> Augment:
    augment = nlpaug_list(model)
    return lambda texts: [augment([text])[0] for text in texts]


SIDES: dict[str, Callable[[str], Augment]] = {
    "ours": ours,
    "ours-one-round": lambda model: ours(model, rounds=1),
    "nlpaug-list": nlpaug_list,
    "nlpaug-rows": nlpaug_rows,
}
PAIRS = (("ours", "nlpaug-list"), ("ours", "nlpaug-rows"), ("ours-one-round", "nlpaug-list"))


def work(side: str, model: str, texts: list[str], threads: int) -> Callable[[], dict[str, Any]]:
    """One measurement: rows a second, and how many words were changed."""
    import torch

    torch.set_num_threads(threads)
    augment = SIDES[side](model)

    def once() -> dict[str, Any]:
        start = time.perf_counter()
        made = augment(texts)
        seconds = time.perf_counter() - start
        words = sum((_words(new) - _words(old)).total() for old, new in zip(texts, made, strict=True))
        return {"figure": len(texts) / seconds, "words": words}

    return once


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def weights(folder: str) -> str:
    """all-MiniLM-L6-v2 with a masked language-modelling head, for both sides."""
    from transformers import AutoTokenizer, BertForMaskedLM

    from tilth import models

    encoder = models.resolve("sentence-transformers/all-MiniLM-L6-v2")
    BertForMaskedLM.from_pretrained(encoder).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return folder


def texts_of(shared: Path, count: int) -> list[str]:
    with open(shared / "data/banking77/train.csv", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    return [row["text"].strip() for row in rows[:: max(1, len(rows) // count)]][:count]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or weights(folder)
        found: dict[str, Any] = {"rows": options.rows, "threads": options.threads}
        for side, peer in PAIRS:
            with ExitStack() as stack:
                command = [__file__, "--model", model, "--rows", str(options.rows), "--threads", str(options.threads)]
                a = stack.enter_context(Worker([sys.executable, *command, "--serve", side]))
                b = stack.enter_context(Worker([options.peer, *command, "--serve", peer]))
                result = paired(a, b, options.rounds)
                words = {"words_ours": a.facts["words"], "words_peer": b.facts["words"]}
                found[f"{side} / {peer}"] = {**result.summary(), **words}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=sys.executable, help="python of the environment with nlpaug")
    parser.add_argument("--model", help="directory of a BERT with a masked language-modelling head")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shared = Path(os.environ.get("TILTH_SHARED", Path(__file__).parents[3] / "shared"))
    if options.serve:
        serve(work(options.serve, options.model, texts_of(shared, options.rows), options.threads))
        return
    found = compare(options)
    if options.json:
        print(json.dumps(found))
        return
    for side, peer in PAIRS:
        figures = found[f"{side} / {peer}"]
        print(f"{side} {figures['a']:.1f} rows/s, {peer} {figures['b']:.1f} rows/s: {figures['ratio']:.1f} times")


if __name__ == "__main__":
    main()
