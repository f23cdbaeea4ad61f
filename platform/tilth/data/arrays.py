"""A JSON array as records: each item is judged by itself, and what is read before damage stays.

The whole text is held in memory, for a line of it means nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO

from tilth.data.readers import BROKEN, Bad, Item, damage, json_record, too_large

_STEP = 1 << 16
_BLANKS = " \t\n\r"
_BETWEEN = re.compile(f"[{_BLANKS}]*([,\\]]?)[{_BLANKS}]*")


def is_array(handle: IO[bytes]) -> bool:
    """Whether the first character that is no blank opens an array; of a damaged file without one it is not known."""
    data, _ = _read(handle, first=True)
    return _text(data).startswith("[")


def read_array(handle: IO[bytes], limit: int) -> Iterator[Item]:
    """The items of an array, numbered from 1; a damaged one ends in a Bad at the item where reading stopped."""
    data, damage = _read(handle)
    text = _text(data)
    number = 1
    try:
        for item in _items(text[1:].lstrip(_BLANKS)):
            raw = item.encode("utf-8", "surrogateescape")
            yield too_large(number, raw, len(raw), limit) if len(raw) > limit else json_record(number, raw)
            number += 1
    except RecursionError:
        damage = damage or "nested too deeply"
    except ValueError as error:
        damage = damage or str(error)
    if damage:
        yield Bad(number, f"broken_file: {damage}")


def _items(text: str) -> Iterator[str]:
    """Each item of what stands behind the bracket; ValueError or RecursionError where the array is no JSON."""
    decoder = json.JSONDecoder()
    more = not text.startswith("]")
    at = 0 if more else 1
    while more:
        _, end = decoder.raw_decode(text, at)
        yield text[at:end]
        between = _BETWEEN.match(text, end)
        if between is None or not between[1]:
            raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
        at, more = between.end(), between[1] == ","
    if text[at:].strip(_BLANKS):
        raise json.JSONDecodeError("Extra data", text, at)


def _text(data: bytes) -> str:
    """The characters from the first that is no blank on; a byte that is none of UTF-8 stays by itself."""
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").lstrip(_BLANKS)


def _read(handle: IO[bytes], first: bool = False) -> tuple[bytes, str]:
    """All that can be read, or the `first` that is no blank, and what broke the stream, if anything did."""
    found = bytearray()
    try:
        while (data := handle.read(_STEP)) and not (first and _text(bytes(found))):
            found += data
    except BROKEN as error:
        return bytes(found), damage(error)
    return bytes(found), ""
