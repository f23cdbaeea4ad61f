"""Synonyms from WordNet 3.0 (Miller 1995) by NLTK, for words that carry meaning."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

Synonyms = Callable[[str], tuple[str, ...]]

# WordNet knows "in" as inch, "he" as helium and "was" as Washington: words of grammar have no synonyms here
_GRAMMAR = """
a about above after again against all also am an and any are aren't as at be because been before being below
between both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each few for
from further had hadn't has hasn't have haven't having he her here hers herself him himself his how i i'd i'll i'm
i've if in into is isn't it it's its itself just let's may me might more most must my myself no nor not now of off
on once only or other ought our ours ourselves out over own please same shall she should shouldn't so some such
than that that's the their theirs them themselves then there these they this those through to too under until up
upon us very was wasn't we were weren't what what's when where which while who whom why will with won't would
wouldn't yes yet you your yours yourself yourselves
"""
GRAMMAR = frozenset(_GRAMMAR.split())


def load_synonyms() -> Synonyms:
    """A function from a word to its synonyms in alphabetical order, none where there are none.

    Fetches WordNet on first use; ModelError where it cannot be had.
    """
    from tilth.models import wordnet_dir

    wordnet_dir()
    from nltk.corpus import wordnet

    wordnet.ensure_loaded()

    @lru_cache(maxsize=50_000)
    def synonyms(word: str) -> tuple[str, ...]:
        word = word.casefold()
        if word in GRAMMAR:
            return ()
        synsets: list[Any] = wordnet.synsets(word)
        names = {name.replace("_", " ") for synset in synsets for name in synset.lemma_names() if name.islower()}
        stem = wordnet.morphy(word)
        return tuple(sorted(name for name in names if name.casefold() not in (word, stem)))

    return synonyms
