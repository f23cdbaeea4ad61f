"""Whole words of a text with their offsets, the ones that no augmenter may touch, and putting others in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

# Python's \w knows no combining marks: without these ranges, decomposed accents and Indic words fall apart
_LETTER = r"[\w\u0300-\u036f\u0900-\u0963\u0966-\u0dff]"
_ADDRESS = r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,;:!?)\]}]|[\w.+-]+@[\w-]+(?:\.[\w-]+)+|[@#]\w+"
_NUMBER = r"[$€£¥]?\d+(?:[.,:/-]\d+)*%?"
# text, compiled when first used: a recipe is checked without it
_WORD = rf"(?P<address>{_ADDRESS})|{_NUMBER}(?!{_LETTER})|{_LETTER}+(?:['’-]{_LETTER}+)*"
_SENTENCE_END = re.compile(r"[.!?…:\n\"“]")


@dataclass(frozen=True)
class Word:
    """A whole word: `text == source[start:end]`."""

    start: int
    end: int
    text: str


def words(text: str) -> list[Word]:
    """The words of `text` in order; punctuation and blanks lie between them. A URL or number is one word."""
    return [Word(match.start(), match.end(), match.group()) for match in re.finditer(_WORD, text)]


def protected(text: str, words: Sequence[Word], *, label: str | None, extra: Iterable[str] = ()) -> set[int]:
    """Indices of the words that carry facts or the label, which a change would falsify.

    These are numbers, addresses (URL, email, @handle, #tag), names (words with a capital inside a sentence), the
    words of the label ("card_arrival" protects "card") and every occurrence of the words or phrases in `extra`.
    """
    names = _names(text, words)
    label_words = {part for part in re.split(r"[\W_]+", label.casefold()) if part} if label else set()
    kept = {
        index
        for index, word in enumerate(words)
        if word.text in names or word.text.casefold() in label_words or _is_fact(word.text)
    }
    return kept.union(*(_occurrences(words, phrase) for phrase in extra))


def replace(text: str, words: Sequence[Word], changes: Mapping[int, str]) -> str:
    """`text` with new words at these indices, all else as it was.

    A new word takes the capitals of the old one (Word, WORD); an empty one takes a neighbouring blank along.
    """
    pieces, end = [], 0
    for index in sorted(changes):
        word, new = words[index], changes[index]
        pieces.append(text[end : word.start])
        end = word.end
        if new:
            pieces.append(_with_capitals_of(word.text, new))
        elif pieces[-1].endswith(" "):
            pieces[-1] = pieces[-1][:-1]
        elif text[end : end + 1] == " ":
            end += 1
    return "".join([*pieces, text[end:]])


def uncapitalised(word: str) -> str:
    """The word as it stands inside a sentence: "The" → "the"; acronyms and "I" stay."""
    if word[1:] != word[1:].lower() or re.match(r"I\b", word):
        return word
    return word.lower()


def _with_capitals_of(old: str, new: str) -> str:
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


def _is_fact(word: str) -> bool:
    match = re.fullmatch(_WORD, word)
    return any(character.isdigit() for character in word) or bool(match and match["address"])


def _names(text: str, words: Sequence[Word]) -> set[str]:
    """Words with a capital where grammar asks for none; empty where most have one (titles, shouting)."""
    capitalised = [word for word in words if uncapitalised(word.text) != word.text or word.text[:2].isupper()]
    if 2 * len(capitalised) > len(words) > 1:
        return set()
    starts = set(_sentence_starts(text, words))
    return {word.text for word in capitalised if word.start not in starts or word.text[1:] != word.text[1:].lower()}


def _sentence_starts(text: str, words: Sequence[Word]) -> Iterator[int]:
    end = 0
    for word in words:
        if end == 0 or _SENTENCE_END.search(text, end, word.start):
            yield word.start
        end = word.end


def _occurrences(all_words: Sequence[Word], phrase: str) -> set[int]:
    """Indices of the words that belong to an occurrence of `phrase`, capitals aside."""
    wanted = [word.text.casefold() for word in words(phrase)]
    found = [word.text.casefold() for word in all_words]
    hits = (start for start in range(len(found)) if wanted and found[start : start + len(wanted)] == wanted)
    return {index for start in hits for index in range(start, start + len(wanted))}
