"""Terms that name who people are, in English, by axis and group: what the bias report counts.

Axes and groups follow HolisticBias (Smith et al. 2022, arXiv:2205.09209), the terms the identity terms of Dixon et
al. 2018 ("Measuring and mitigating unintended bias in text classification") and common words for the sexes. A term
counts as a whole word. Lists are short on purpose: words that mostly mean something else (fair, straight as a way,
old as the age of things, black and white as colours alone) are left out or stand with a noun.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

_PEOPLE = "man|men|woman|women|person|people|boy|boys|girl|girls|guy|guys|lady|ladies|community|kid|kids|child|children"

#: axis → group → terms, as alternatives of a regular expression
TERMS: Mapping[str, Mapping[str, str]] = {
    "gender": {
        "female": "she|her|hers|herself|woman|women|girls?|female|females|mother|mothers|mom|mum|daughters?|sisters?|"
        "wife|wives|aunts?|grandmothers?|ladies|lady|queens?|actress|actresses|mrs|ms|girlfriends?",
        "male": "he|him|his|himself|man|men|boys?|male|males|father|fathers|dad|sons?|brothers?|husbands?|uncles?|"
        "grandfathers?|gentleman|gentlemen|kings?|mr|boyfriends?",
        "other": "transgender|trans|non-?binary|genderqueer|genderfluid|intersex|agender|two-spirit",
    },
    "age": {
        "young": f"young (?:{_PEOPLE})|teenagers?|teens?|youths?|adolescents?|toddlers?|millennials?|minors",
        "middle": "middle[- ]aged|adults?|in (?:his|her|their) (?:thirties|forties|fifties)",
        "old": f"old (?:{_PEOPLE})|older (?:{_PEOPLE})|elderly|elders?|senior citizens?|seniors|retirees?|pensioners?|"
        "octogenarians?",
    },
    "religion": {
        "christian": "christians?|christianity|catholics?|protestants?|evangelicals?|mormons?|church(?:es)?|jesus|"
        "bible",
        "muslim": "muslims?|islam|islamic|mosques?|quran|koran|sunni|shia|hijabs?",
        "jewish": "jews?|jewish|judaism|synagogues?|rabbis?|torah",
        "other": "hindus?|hinduism|buddhists?|buddhism|sikhs?|sikhism|taoists?|pagans?",
        "secular": "atheists?|atheism|agnostics?|secular",
    },
    "ethnicity": {
        "black": f"african[- ]americans?|black (?:{_PEOPLE}|americans?)|blacks|africans?",
        "white": f"white (?:{_PEOPLE}|americans?)|whites|caucasians?|europeans?",
        "asian": "asians?|asian[- ]americans?|chinese|japanese|koreans?|indians?|filipinos?|vietnamese",
        "latino": "latin[oax]s?|latinx|hispanics?|mexicans?|latin americans?",
        "middle_eastern": "arabs?|middle eastern(?:ers?)?|persians?|iranians?|turks?|turkish",
        "indigenous": "indigenous|native americans?|aboriginals?|first nations|inuit|maori",
    },
    "orientation": {
        "heterosexual": f"heterosexuals?|straight (?:{_PEOPLE})",
        "homosexual": "gay|gays|lesbians?|homosexuals?|same-sex",
        "other": "bisexuals?|queer|lgbtq?\\+?|pansexuals?|asexuals?",
    },
    "disability": {
        "physical": "wheelchairs?|paralyzed|paralysed|paraplegics?|amputees?|disabled|disabilit(?:y|ies)|crippled",
        "sensory": f"deaf|blind (?:{_PEOPLE})|hearing[- ]impaired|visually impaired|hard of hearing|mute (?:{_PEOPLE})",
        "mental": "autistic|autism|adhd|bipolar|schizophreni[ac]s?|mentally ill|down syndrome|dyslexi[ac]s?|depressed",
    },
}


@lru_cache(maxsize=1)
def _patterns() -> dict[str, dict[str, re.Pattern[str]]]:
    return {
        axis: {group: re.compile(rf"(?<!\w)(?:{terms})(?!\w)", re.IGNORECASE) for group, terms in groups.items()}
        for axis, groups in TERMS.items()
    }


def groups_of(text: str, axis: str) -> list[str]:
    """The groups of an axis that a text names, each once."""
    return [group for group, pattern in _patterns()[axis].items() if pattern.search(text)]
