"""Round trips English-French-English: ours on CTranslate2 beside bare CTranslate2 and beside transformers.

Lines of FLORES dev, OPUS-MT, one thread on each side. Bare CTranslate2 gets every line at once and sorts by itself;
transformers gets batches of 32 sorted by length, in float32 (CTranslate2 has int8 weights). BLEU of the way to French
against the reference shows whether speed was bought with quality.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from tests.bench.paired import Facts, Worker, paired, serve_one, timed
from tests.bench.result import SHARED, Options, Result, compared
from tilth import models
from tilth.errors import ModelError

SUMMARY = "round trips on CTranslate2, over bare CTranslate2 and over transformers' generate"
MODELS = ("Helsinki-NLP/opus-mt-en-fr", "Helsinki-NLP/opus-mt-fr-en")
PAIRS = (("bare", 1, 0.95), ("bare", 4, 0.95), ("transformers", 1, 3.5), ("transformers", 4, 5.0))
BATCH = 32
Translate = Callable[[list[str]], list[str]]


def lines(language: str, count: int) -> list[str]:
    text = (SHARED / f"data/flores/dev.{language}").read_text(encoding="utf-8")
    return text.splitlines()[:count]


def ours(beams: int) -> tuple[Translate, Translate]:
    """The way to French alone, and the round trip as the augmenter makes it."""
    from tilth.augment.back_translation import BackTranslation
    from tilth.augment.base import Sample
    from tilth.augment.translators import CTranslate2, Decoding, Pivot
    from tilth.data.transform import Inputs

    there, back = (CTranslate2(model=name, decoding=Decoding(beams=beams), device="cpu") for name in MODELS)
    forward = there.load(Inputs())
    variants = BackTranslation(pivots=(Pivot(forward=there, backward=back),)).load_variants(Inputs())

    def trip(texts: list[str]) -> list[str]:
        samples = [Sample(str(n), text, None, random.Random(n), {}) for n, text in enumerate(texts)]
        return [made[0].text for made in variants(samples)]

    return lambda texts: [found[0] for found in forward(texts, [0] * len(texts), 1)], trip


def bare(beams: int) -> tuple[Translate, Translate]:
    import ctranslate2
    from transformers import AutoTokenizer

    from tilth.augment.engines.ctranslate import converted

    def direction(name: str) -> Translate:
        folder = models.resolve(name)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        translator = ctranslate2.Translator(str(converted(folder, "int8")), device="cpu", compute_type="int8")

        def translate(texts: list[str]) -> list[str]:
            tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(texts).input_ids]
            made = translator.translate_batch(
                tokens, beam_size=beams, max_batch_size=4096, batch_type="tokens", max_decoding_length=256
            )
            ids = [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in made]
            return list(tokenizer.batch_decode(ids, skip_special_tokens=True))

        return translate

    return _both(direction)


def transformers(beams: int) -> tuple[Translate, Translate]:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    def direction(name: str) -> Translate:
        folder = models.resolve(name)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        model.generation_config.max_length = None

        def translate(texts: list[str]) -> list[str]:
            order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
            made: dict[int, str] = {}
            for at in range(0, len(order), BATCH):
                batch = order[at : at + BATCH]
                inputs = tokenizer([texts[index] for index in batch], return_tensors="pt", padding=True)
                with torch.inference_mode():
                    ids = model.generate(**inputs, num_beams=beams, max_new_tokens=256, do_sample=False)
                made.update(zip(batch, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True))
            return [made[index] for index in range(len(texts))]

        return translate

    return _both(direction)


def _both(direction: Callable[[str], Translate]) -> tuple[Translate, Translate]:
    forward, backward = map(direction, MODELS)
    return forward, lambda texts: backward(forward(texts))


ENGINES = {"ours": ours, "bare": bare, "transformers": transformers}


def side(name: str, arguments: Sequence[str]) -> Callable[[], Facts]:
    import sacrebleu
    import torch

    torch.set_num_threads(1)
    count, beams = map(int, arguments)
    forward, trip = ENGINES[name](beams)
    texts = lines("en", count)
    bleu = sacrebleu.corpus_bleu(forward(texts), [lines("fr", count)]).score
    return lambda: {**timed(count, lambda: trip(texts)), "bleu": bleu}


def missing(options: Options) -> str | None:
    if not (SHARED / "data/flores/dev.en").is_file():
        return "no FLORES lines (data/flores under TILTH_SHARED)"
    try:
        for name in MODELS:
            models.resolve(name)
    except ModelError as error:
        return str(error)
    return None


def measure(options: Options) -> Iterator[Result]:
    # CTranslate2 takes its number of threads from here
    os.environ["OMP_NUM_THREADS"] = "1"
    for peer, beams, aim in PAIRS:
        count = str(options.size(24 if peer == "bare" else 8, 128))
        with ExitStack() as stack:
            a, b = (stack.enter_context(Worker(__spec__.name, name, count, str(beams))) for name in ("ours", peer))
            found = paired(a, b, options.rounds)
        bleu = f"BLEU {found.a[0]['bleu']:.1f} and {found.b[0]['bleu']:.1f}"
        how = "greedy" if beams == 1 else f"beam {beams}"
        yield compared(f"back-translation / {peer}, {how}", found, aim, f"{count} lines, {bleu}")


if __name__ == "__main__":
    serve_one({name: lambda arguments, name=name: side(name, arguments) for name in ENGINES})  # type: ignore[misc]
