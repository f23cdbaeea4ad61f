"""Cleaning: what is normalised in every text of a row before anything else looks at it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from tilth.config import Component

# C0, DEL and C1 controls but tab and newline, and the byte order mark
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_NEWLINE = re.compile("\r\n?|\u2028|\u2029|\x85")
_SPACES = re.compile(r"[^\S\n]+")


class Cleaning(Component):
    """How texts are normalised, and which rows count as the same."""

    unicode: Literal["NFC", "NFKC", "keep"] = Field("NFC", description="Unicode normalisation form of every text.")
    whitespace: Literal["trim", "collapse", "keep"] = Field(
        "trim",
        description="trim: newlines become \\n, the ends are stripped. collapse: also runs of blanks become one "
        "space (not for code).",
    )
    control: Literal["drop", "keep"] = Field("drop", description="Control characters other than newline and tab.")
    duplicates: Literal["exact", "normalized", "keep"] = Field(
        "exact",
        description="Rows whose input is the same are kept once. normalized: also when they differ in case, "
        "punctuation or blanks only.",
    )


def clean_text(text: str, how: Cleaning) -> str:
    """`text` normalised; cleaning twice changes nothing more."""
    if how.whitespace != "keep":
        text = _NEWLINE.sub("\n", text)
    if how.control == "drop":
        text = _CONTROL.sub("", text)
    if how.unicode != "keep":
        text = unicodedata.normalize(how.unicode, text)
    if how.whitespace == "collapse":
        text = _SPACES.sub(" ", text)
    return text if how.whitespace == "keep" else text.strip()


def clean_value(value: Any, how: Cleaning) -> Any:
    """The same for every text within a payload value: a string, words, answers or the messages of a chat."""
    return map_texts(value, lambda text: clean_text(text, how))


def bad_character(text: str) -> str | None:
    """The reason for a row with a character that no row may hold (NUL, a lone surrogate); None where there is none."""
    bad = next((char for char in text if char == "\x00" or "\ud800" <= char <= "\udfff"), None)
    return bad and f"bad_character: holds U+{ord(bad):04X}"


def storable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which no file could hold."""
    return text.encode("utf-8", "replace").decode()


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to the texts in it; roles of messages stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [map_texts(item, change) for item in value]
    if isinstance(value, dict):
        return {key: change(item) if key in ("content", "text") else item for key, item in value.items()}
    return value


def said(item: Any) -> str:
    """The text of one item of a list: a word, an answer, or what a turn of a conversation says."""
    return item if isinstance(item, str) else str(item.get("content", item.get("text")))
