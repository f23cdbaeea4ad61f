"""A reward function as a user would write one: right answers to problems that end in a number, as in gsm8k.

"… so she has 5 left.\\n#### 5"  →  1.0 where the row's own answer is 5, else 0.0
"""

from __future__ import annotations

import re

from tilth.data.schema import Row

_MARKED = re.compile(r"####\s*(-?[\d.,]+)")


def exact_answer(prompts: list[str], completions: list[str], rows: list[Row]) -> list[float]:
    """1 where a completion's last `#### n` is that of the row's completion, else 0 (Cobbe et al. 2021).

    arXiv:2110.14168. Commas and a trailing point do not count: 1,200. is 1200.
    """
    wanted = [_answer(row.get("completion") or "") for row in rows]
    pairs = zip(completions, wanted, strict=True)
    return [float(right is not None and _answer(said) == right) for said, right in pairs]


def _answer(text: str) -> float | None:
    found = _MARKED.findall(text)
    try:
        return float(found[-1].replace(",", "").rstrip(".")) if found else None
    except ValueError:
        return None
