"""Contextual substitution: ours beside nlpaug on the same weights, rows and share of words.

The peer environment, given as `--peer PEER_VENV/bin/python`: Python 3.11 with nlpaug 1.1.11, torch 2.13.0 (CPU),
transformers 4.57.6 (nlpaug does not work with 5), numpy 2.4.6, requests, pandas. TextAttack 0.3.10 would go into it
as well, but asks for flair, which asks for a sentencepiece that builds from source only and does not build with
present compilers; so it is not measured.

The weights are all-MiniLM-L6-v2 with a language-modelling head, untrained: what is measured is speed, not taste.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from tests.bench.paired import Facts, Worker, paired, serve_one, timed
from tests.bench.result import Options, Result, banking_texts, compared

SUMMARY = "masked-LM substitutions, over nlpaug's"
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


ENGINES: dict[str, Callable[[str], Augment]] = {
    "ours": ours,
    "ours, one round": lambda model: ours(model, rounds=1),
    "nlpaug, list mode": nlpaug_list,
    "nlpaug, row by row": nlpaug_rows,
}
PAIRS = (
    ("ours", "nlpaug, list mode", 12.0),
    ("ours", "nlpaug, row by row", 25.0),
    ("ours, one round", "nlpaug, list mode", None),
)


def side(name: str, arguments: Sequence[str]) -> Callable[[], Facts]:
    """One measurement: rows a second, and how many words were changed."""
    import torch

    # one thread on both sides: small batches gain nothing from more, and a busy machine weighs less
    torch.set_num_threads(1)
    model, rows = arguments
    texts = [text.strip() for text in banking_texts(int(rows))]
    augment = ENGINES[name](model)

    def once() -> Facts:
        made: list[str] = []
        facts = timed(len(texts), lambda: made.extend(augment(texts)))
        words = sum((_words(new) - _words(old)).total() for old, new in zip(texts, made, strict=True))
        return {**facts, "words": words}

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


def missing(options: Options) -> str | None:
    if options.peer is None:
        return "needs --peer, the python of an environment with nlpaug (tests/bench/contextual.py says which)"
    done = subprocess.run([options.peer, "-c", "import nlpaug"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"{options.peer} cannot import nlpaug: {done.stderr.strip()[-200:]}"


def measure(options: Options) -> Iterator[Result]:
    rows = str(options.size(64, 256))
    with tempfile.TemporaryDirectory() as folder:
        model = weights(folder)
        for name, peer, aim in PAIRS:
            with ExitStack() as stack:
                a = stack.enter_context(Worker(__spec__.name, name, model, rows))
                b = stack.enter_context(Worker(__spec__.name, peer, model, rows, python=options.peer or ""))
                found = paired(a, b, options.rounds)
            words = f"{found.a[-1]['words']} and {found.b[-1]['words']} words changed"
            yield compared(f"contextual: {name} / {peer}", found, aim, f"{rows} rows, {words}")


if __name__ == "__main__":
    serve_one({name: lambda arguments, name=name: side(name, arguments) for name in ENGINES})  # type: ignore[misc]
