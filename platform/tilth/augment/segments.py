"""A text as sentences and what lies between them, so that it can be put together again blank for blank."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

Span = tuple[int, int]

# Translation models read at most 512 tokens: a "sentence" beyond this many characters is cut at a blank.
LONGEST = 500
# pySBD takes time by the square of what it is given: 60,000 characters in one line take it 23 s, in pieces 3 s
PIECE = 2000
_MAY_END = re.compile(r"[.!?…。！？।؟:;][\"'”’)\]]*\s")
_LINE = re.compile(r"[^\n]+")
_WHOLE_WORDS = re.compile(r".*\S(?=\s)", re.DOTALL)


def sentences(text: str, language: str = "en", longest: int = LONGEST) -> list[Span]:
    """(start, end) of every sentence, in order and without blanks at either end; only blanks lie between them.

    Sentences never cross a line end. Found by pySBD's rules (Sadvilkar and Neumann 2020) for `language`.
    """
    found: list[Span] = []
    for line in _LINE.finditer(text):
        for start, end in _line_sentences(line.group(), language):
            found += _cut(text, line.start() + start, line.start() + end, longest)
    return found


def rebuild(text: str, spans: Sequence[Span], new: Sequence[str]) -> str:
    """`text` with the content of each span replaced and everything between them kept."""
    pieces, last = [], 0
    for (start, end), content in zip(spans, new, strict=True):
        pieces += [text[last:start], content]
        last = end
    return "".join([*pieces, text[last:]])


def rewrite(
    texts: Sequence[str], make: Callable[[list[str], list[int]], Sequence[Sequence[str]]], count: int, language: str
) -> list[list[str]]:
    """`count` new versions of each text, made sentence by sentence with all sentences of all texts in one call.

    `make` gets the sentences and for each the index of its text; it returns at least one new version of each.
    Version n of a text is put together from version n of its sentences, or the last where there are fewer.
    """
    spans = [sentences(text, language) for text in texts]
    parts = [texts[index][start:end] for index, found in enumerate(spans) for start, end in found]
    made = iter(make(parts, [index for index, found in enumerate(spans) for _ in found]))
    versions = [[next(made) for _ in found] for found in spans]
    return [
        [rebuild(text, found, [several[min(n, len(several) - 1)] for several in new]) for n in range(count)]
        for text, found, new in zip(texts, spans, versions, strict=True)
    ]


def _line_sentences(line: str, language: str) -> Iterator[Span]:
    """Spans that cover the whole line, cut where a sentence ends."""
    begin = start = 0
    while start < len(line):
        end = _piece_end(line, start)
        later = [start + at for at in _beginnings(line[start:end], language)]
        for at in later:
            yield begin, at
            begin = at
        # the last sentence of a piece may go on: it begins the next one
        start = begin if later and end < len(line) else end
    yield begin, len(line)


def _piece_end(line: str, start: int) -> int:
    """Where the piece from `start` ends: at a blank, so that it holds whole words where it can."""
    if len(line) - start <= PIECE:
        return len(line)
    words = _WHOLE_WORDS.match(line, start, start + PIECE + 1)
    return words.end() if words else start + PIECE


def _beginnings(piece: str, language: str) -> list[int]:
    """Where each sentence but the first begins, which is where the one before it ends."""
    ends = [0]
    for sentence in _segmenter(language).segment(piece) if _MAY_END.search(piece) else ():
        content = sentence.strip()
        start = piece.find(content, ends[-1])
        if not content or start < 0:  # pySBD may lose characters: they stay with the sentence that follows
            continue
        if len(ends) > 1 and not any(map(str.isalnum, content)):
            ends.pop()
        ends.append(start + len(content))
    return [end for end in ends[1:] if piece[end:].strip()]


@cache
def _segmenter(language: str) -> Any:
    import pysbd

    return pysbd.Segmenter(language=language, clean=False)


def _cut(text: str, start: int, end: int, longest: int) -> Iterator[Span]:
    """The span without blanks around it, in pieces of at most `longest` characters."""
    content = text[start:end]
    start += len(content) - len(content.lstrip())
    end = start + len(content.strip())
    while end - start > longest:
        words = _WHOLE_WORDS.match(text, start, start + longest + 1)
        middle = words.end() if words else start + longest
        yield start, middle
        start = middle + len(text[middle:end]) - len(text[middle:end].lstrip())
    if end > start:
        yield start, end
