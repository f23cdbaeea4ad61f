"""Which candidate wins, and whether its lead is more than luck."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilth.search.measures import Objective
    from tilth.search.trials import Trial

LEVEL = 0.95


@dataclass
class Candidate:
    """A trial, or the recipe as written (`number` is None), with what its runs scored."""

    number: int | None
    values: dict[str, Any]
    scores: dict[str, float]
    made: dict[str, str]
    #: seed: the deciding figure of a run with it
    seeds: dict[int, float] = field(default_factory=dict)
    #: what the run with each seed left
    left: dict[int, dict[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "the recipe as written" if self.number is None else f"trial {self.number}"


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval by Student's t."""

    value: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of two values or more."""
    from scipy.stats import t

    mean = fmean(values)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def lead(one: Candidate, other: Candidate, sign: int) -> Estimate | None:
    """By how much `one` is better, paired by seed; None where they share fewer than two seeds."""
    seeds = shared(one, other)
    if len(seeds) < 2:
        return None
    return estimate([sign * (one.seeds[seed] - other.seeds[seed]) for seed in seeds])


def shared(one: Candidate, other: Candidate) -> list[int]:
    """The seeds that both have finished with."""
    return [seed for seed in one.seeds if seed in other.seeds]


def best_first(trials: Sequence[Trial], objective: Objective) -> list[Trial]:
    """The complete trials, and of two with the same values the first."""
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.state == "complete":
            found.setdefault(str(sorted(trial.made.items())), trial)
    return sorted(found.values(), key=lambda trial: -objective.sign * trial.scores[objective.metric])


def front(scores: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> list[int]:
    """The places of those that no other beats in one objective without losing in another: the Pareto front."""
    points = [[item.sign * each[item.metric] for item in objectives] for each in scores]
    return [
        place
        for place, point in enumerate(points)
        if not any(other != point and all(o >= p for o, p in zip(other, point, strict=True)) for other in points)
    ]


def winner(candidates: Sequence[Candidate], objective: Objective) -> Candidate:
    """The best mean over the seeds, or without seeds the best run; the recipe as written where it is as good.

    Only those that finished with the most seeds can win: a mean over fewer may be one lucky run.
    """

    def key(candidate: Candidate) -> tuple[float, bool]:
        figure = fmean(candidate.seeds.values()) if candidate.seeds else candidate.scores[objective.metric]
        return objective.sign * figure, candidate.number is None

    most = max(len(candidate.seeds) for candidate in candidates)
    return max((candidate for candidate in candidates if len(candidate.seeds) == most), key=key)


def verdicts(best: Candidate, others: Sequence[Candidate], objective: Objective) -> list[str]:
    """A line on the winner against the recipe as written, and against the next best trial."""
    return [_verdict(best, other, objective) for other in others]


def _verdict(best: Candidate, other: Candidate, objective: Objective) -> str:
    found = lead(best, other, objective.sign)
    if found is None:
        return _one_run(best, other, objective)
    seeds = len(shared(best, other))
    span = f"by {found.value:.4g}, 95 % interval {found.low:.4g} to {found.high:.4g} over {seeds} seeds"
    beats = "beats" if found.low > 0 else "does not beat"
    beyond = "" if found.low > 0 else " beyond noise"
    return f"{best.name} {beats} {other.name}{beyond} in {objective.metric}: {span}"


def _one_run(best: Candidate, other: Candidate, objective: Objective) -> str:
    """What is said of two that share too few seeds: how they did in the search itself."""
    gap = objective.sign * (best.scores[objective.metric] - other.scores[objective.metric])
    than = "worse" if gap < 0 else "better"
    why = "without repeats nothing tells whether that is luck"
    if best.seeds or other.seeds:
        runs = f"{best.name} finished with {len(best.seeds)} seeds, {other.name} with {len(other.seeds)}"
        why = f"{runs}, and below two that both finished with nothing tells whether that is luck"
    return f"{best.name} is {abs(gap):.4g} {than} in {objective.metric} than {other.name}, in one run of each: {why}"
