"""Contextual substitution: ours beside nlpaug and TextAttack on the same weights, rows and share of words.

The peer environment, given as `--peer PEER_VENV/bin/python`: Python 3.11 with nlpaug 1.1.11, torch 2.13.0 (CPU),
transformers 4.57.6 (nlpaug does not work with 5), numpy 2.4.6, requests, pandas; for TextAttack also
`pip install --no-deps textattack==0.3.10` and bert-score, datasets, editdistance, jieba, langdetect,
language-tool-python, lemminflect, lru-dict, more-itertools, nltk, num2words, OpenHowNet, pinyin, scipy,
terminaltables, word2number. Of what TextAttack imports, flair is left out, since its sentencepiece does not build with
present compilers: it tags parts of speech, and nothing that is measured here asks for them (`_imports_of_textattack`).

The weights are all-MiniLM-L6-v2 with a language-modelling head, untrained: what is measured is speed, not taste.
All sides may change any word. What each changed is counted and said, since they do not change equally many.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

from tests.bench.paired import Facts, Worker, paired, serve_one, timed
from tests.bench.result import Options, Result, banking_texts, compared

SUMMARY = "masked-LM substitutions, over nlpaug's and TextAttack's"
# nlpaug's own default
SHARE = 0.3
Augment = Callable[[list[str]], list[str]]


def ours(model: str, rounds: int = 2, precision: str = "int8") -> Augment:
    from tilth.augment.contextual import Contextual, Sampling
    from tilth.augment.proposers import MaskedLM
    from tilth.data.schema import original
    from tilth.data.transform import Inputs

    config = Contextual(
        proposer=MaskedLM.model_validate({"model": model, "precision": precision}),
        edits=SHARE,
        function_words=True,
        sampling=Sampling(rounds=rounds),
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


def textattack(model: str) -> Augment:
    """Masks each word of a text in turn, replaces one at random, and again until the share is reached.

    `max_length` is what it pads every text to; its default of 512 would cost it eight times as much.
    """
    with tempfile.TemporaryDirectory() as folder:
        _imports_of_textattack(Path(folder))
        from textattack.augmentation import Augmenter
        from textattack.constraints.pre_transformation import RepeatModification
        from textattack.transformations import WordSwapMaskedLM

    swap = WordSwapMaskedLM(masked_language_model=model, max_length=64, max_candidates=20, min_confidence=0.0)
    augmenter = Augmenter(transformation=swap, constraints=[RepeatModification()], pct_words_to_swap=SHARE)
    return lambda texts: [augmenter.augment(text)[0] for text in texts]


def _imports_of_textattack(folder: Path) -> None:
    """What its import asks for and the augmenter above does not: flair's classes and a list of stop words."""
    flair, data, models = ModuleType("flair"), ModuleType("flair.data"), ModuleType("flair.models")
    for module, name in ((flair, "data"), (flair, "models")):
        setattr(module, name, {"data": data, "models": models}[name])
    for module, name in ((data, "Sentence"), (data, "Tokenizer"), (models, "SequenceTagger")):
        setattr(module, name, object)
    sys.modules.update({"flair": flair, "flair.data": data, "flair.models": models})
    stopwords = folder / "corpora/stopwords/english"
    stopwords.parent.mkdir(parents=True)
    stopwords.write_text("the\n", encoding="utf-8")
    os.environ["NLTK_DATA"] = str(folder)


ENGINES: dict[str, Callable[[str], Augment]] = {
    "ours": ours,
    "ours, one round": lambda model: ours(model, rounds=1),
    "ours, float32": lambda model: ours(model, precision="float32"),
    "nlpaug, list mode": nlpaug_list,
    "nlpaug, row by row": nlpaug_rows,
    "TextAttack": textattack,
}
#: ours, the peer, what is aimed at, and a share of the rows, since TextAttack takes a minute for a hundred
PAIRS = (
    ("ours", "nlpaug, list mode", 12.0, 1),
    ("ours", "nlpaug, row by row", 25.0, 1),
    ("ours, one round", "nlpaug, list mode", None, 1),
    ("ours, one round", "nlpaug, row by row", None, 1),
    ("ours, float32", "nlpaug, list mode", None, 1),
    ("ours", "TextAttack", None, 8),
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
        return {**facts, "words": words, "word_rate": facts["rate"] * words / len(texts)}

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
    rows = options.size(64, 256)
    with tempfile.TemporaryDirectory() as folder:
        model = weights(folder)
        for name, peer, aim, part in PAIRS:
            size = str(rows // part)
            with ExitStack() as stack:
                a = stack.enter_context(Worker(__spec__.name, name, model, size))
                b = stack.enter_context(Worker(__spec__.name, peer, model, size, python=options.peer or ""))
                found = paired(a, b, options.rounds)
            words = f"{found.a[-1]['words']} and {found.b[-1]['words']} words changed"
            note = f"{size} rows, {words}, {found.ratio('word_rate'):.3g} by changed words"
            yield compared(f"contextual: {name} / {peer}", found, aim, note)


if __name__ == "__main__":
    serve_one({name: lambda arguments, name=name: side(name, arguments) for name in ENGINES})  # type: ignore[misc]
