"""Python programs in the answers of a model: where the code is, what it defines, and which of it tests what.

Sure, here it is:⏎```python⏎def f(x): …⏎```⏎It …   →   def f(x): …
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from tilth.data.schema import Row

_BLOCK = re.compile(r"```(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code_of(text: str) -> str:
    """The code of an answer: its first block of code, or all of it where there is none."""
    block = _BLOCK.search(text)
    return (block.group(1) if block else text).strip("\n").rstrip()


def _parsed(code: str) -> list[ast.stmt]:
    try:
        return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def names_in(code: str) -> list[str]:
    """The functions and classes that a program defines at its top; none where it is no Python."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return list(dict.fromkeys(node.name for node in _parsed(code) if isinstance(node, kinds)))


def assertions_in(code: str, names: Sequence[str]) -> list[str]:
    """The assertions among the statements of `code` that use one of these names."""
    found = []
    for node in _parsed(code):
        used = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        if isinstance(node, ast.Assert) and used & set(names):
            found.append(ast.unparse(node))
    return list(dict.fromkeys(found))


def given_tests(row: Row, names: Sequence[str]) -> str:
    """The tests that a row carries in `meta` under these names, as one text; empty where it has none."""
    found: list[Any] = [row["meta"].get(name) or "" for name in names]
    return "\n".join(item if isinstance(item, str) else "\n".join(map(str, item)) for item in found).strip()
