"""When two texts count as the same: normal form, key, words, shingles and Jaccard similarity.

Light and pure, so that every stage compares texts alike: sources drop repeated rows with `text_key`, augmentation
drops near-duplicates with shingles (`tilth.data.minhash` finds the pairs).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Set as AbstractSet

# sentence marks only: `5-3` and `5/3`, `a+b` and `a*b` are different texts
_MARKS = re.escape(".,;:!?…\"'`´“”„‘’«»‹›()[]{}¿¡。、，！？：；「」『』（）")
# patterns are text, compiled when first used: a recipe is checked without them
_EDGES = rf"(?:(?<=\s)|^)[{_MARKS}]+|[{_MARKS}]+(?=\s|$)"
# Chinese, Japanese, Korean and Thai write no spaces between words: each character counts as one
_WORD = (
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)


def normalise(text: str) -> str:
    """NFKC, case folded, single spaces, no sentence marks at the edges of words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(_EDGES, " ", folded).split())


def text_key(*texts: str) -> bytes:
    """16 bytes (BLAKE2b) that are equal where all texts are equal after `normalise`."""
    joined = "\x1f".join(map(normalise, texts))
    return hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def words(text: str) -> list[str]:
    """The words of a text as they stand; single characters in scripts that write no spaces."""
    return re.findall(_WORD, text)


def shingles(text: str, size: int) -> frozenset[str]:
    """Every run of `size` words of the normalised text; a shorter text is one shingle by itself."""
    found = words(normalise(text))
    return frozenset(" ".join(found[i : i + size]) for i in range(max(1, len(found) - size + 1)))


def jaccard(left: AbstractSet[str], right: AbstractSet[str]) -> float:
    """Shared over all, 1.0 for two empty sets."""
    union = len(left | right)
    return len(left & right) / union if union else 1.0
