"""What sets two identities of a stage apart, in words: why a stage runs again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """What differs between two identities, one phrase for each dotted path."""
    if isinstance(old, dict) and isinstance(new, dict):
        if len(old) == 1 and old.keys() == new.keys() and _is_reference(*next(iter(old.items()))):
            if old != new:
                yield f"{next(iter(old))} changed"
            return
        for key in [*new, *(key for key in old if key not in new)]:
            yield from changes(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from changes(left, right, f"{path}.{index}")
    elif old != new:
        yield f"{path}: {_short(old)} → {_short(new)}"


def _is_reference(name: str, value: Any) -> bool:
    """Whether this is the fingerprint of another stage, under "@stage" or what of it is measured."""
    return name.startswith("@") or ("/" in name and isinstance(value, str) and len(value) == 64)


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else text[:39] + "…"
