"""What looks at held-out prompts came to: which policy is the best, and where reward and gold part. Light."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Look = Mapping[str, Any]
#: 97.5th percentile of the normal distribution
Z = 1.96


def gain(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference on the same prompts, and its 95 % interval (normal, paired)."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    if count < 2:
        return mean, -math.inf, math.inf
    half = Z * math.sqrt(sum((d - mean) ** 2 for d in differences) / (count - 1) / count)
    return mean, mean - half, mean + half


def best(looks: Sequence[Look], max_kl: float | None) -> Look:
    """The look with the highest gold among those within the bound; the first one is always within it."""
    allowed = [look for look in looks if max_kl is None or look["kl"] <= max_kl or look is looks[0]]
    return max(allowed, key=lambda look: look["gold"])


def crossed(looks: Sequence[Look], max_kl: float | None) -> tuple[float, float, float]:
    """The gain in gold of choosing the best look, without the luck of having chosen it: as `gain`.

    Each half of the prompts is measured at the look that is the best on the other half (cross-validation, Stone 1974).
    """
    before: list[float] = []
    after: list[float] = []
    for half in (0, 1):
        others = [{**look, "gold": sum(look["golds"][1 - half :: 2])} for look in looks]
        before += looks[0]["golds"][half::2]
        after += best(others, max_kl)["golds"][half::2]
    return gain(before, after)


def parting(looks: Sequence[Look]) -> int | None:
    """The step of the highest gold, if at a look after it reward rose and gold fell, both beyond chance; else None.

    That is where optimising the one no longer serves the other (Gao et al. 2023, arXiv:2210.10760).
    """
    top = max(looks, key=lambda look: look["gold"], default=None)
    if top is None:
        return None
    for look in looks[looks.index(top) + 1 :]:
        rose = gain(top["rewards"], look["rewards"])[1] > 0
        fell = gain(top["golds"], look["golds"])[2] < 0
        if rose and fell:
            return int(top["step"])
    return None


def waited(looks: Sequence[Look], patience: int, min_delta: float) -> bool:
    """Whether the last `patience` looks brought no gold that is higher by more than `min_delta`."""
    standing, since = -math.inf, 0
    for look in looks:
        if look["gold"] > standing + min_delta:
            standing, since = look["gold"], 0
        else:
            since += 1
    return since >= patience
