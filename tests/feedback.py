"""Rewards for tests, as functions of a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilth.data.transform import Inputs
from tilth.generate.judges import Contest, Judge, JudgeFunction, Judgement

#: calls until `letters` fails; None: it does not
fails_after: int | None = None


class Failed(RuntimeError):
    """What `letters` fails with."""


def letters(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """The share of a completion's characters that are letters of the alphabet."""
    global fails_after
    if fails_after is not None:
        fails_after -= 1
        if fails_after < 0:
            raise Failed
    return [sum(c.isascii() and c.isalpha() for c in text) / max(1, len(text)) for text in completions]


def lower_case(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """The share of small letters."""
    return [sum(c.isascii() and c.islower() for c in text) / max(1, len(text)) for text in completions]


def nothing(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """No number at all, which no policy should learn from."""
    return [float("nan")] * len(completions)


class MostLetters(Judge):
    """Scores answers by their share of letters; one that has none gets no score."""

    def load(self, inputs: Inputs) -> JudgeFunction:
        def judge(contests: Sequence[Contest]) -> list[Judgement]:
            shares = [letters([], list(contest.candidates), []) for contest in contests]
            return [Judgement(tuple(share or None for share in found)) for found in shares]

        return judge
