"""From judged rows to figures: marks, win rates, ratings, biases of the judge, and how far it agrees with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from tilth.data.agreement import by_group, spread
from tilth.data.bootstrap import Floats, Statistic, interval, mean
from tilth.data.schema import Row
from tilth.evaluate.bootstrap import holm, mcnemar
from tilth.evaluate.judging.agreement import agree, among, spearman
from tilth.evaluate.judging.opinions import Opinions, opinions
from tilth.evaluate.judging.people import Outcomes, People
from tilth.evaluate.judging.ranking import Won, elo, length_controlled


@dataclass(frozen=True)
class Judged:
    """What one judge said of the rows: outcomes of pairs, and scores where it gave any."""

    models: tuple[str, ...]
    rows: Sequence[Row]

    @property
    def scores(self) -> list[Mapping[str, float]]:
        """For each row what each model's answer was given; empty where the judge compares."""
        return [row["meta"]["judged"].get("scores", {}) for row in self.rows]

    def outcomes(self) -> Outcomes:
        """The first model's share of a win in each pair; of scores the higher one wins."""
        found: Outcomes = {}
        for row, scores in zip(self.rows, self.scores, strict=True):
            for one, other, share, *_ in row["meta"]["judged"].get("pairs", ()):
                found[row["id"], one, other] = float(share)
            for one, other in combinations(self.models, 2):
                if one in scores and other in scores:
                    found[row["id"], one, other] = float(np.sign(scores[one] - scores[other])) / 2 + 0.5
        return found

    def lengths(self) -> dict[tuple[str, str], int]:
        """Characters of each answer, by row and model."""
        pairs = ((row, model) for row in self.rows for model in self.models)
        return {(row["id"], model): len(row["meta"]["candidates"][model]) for row, model in pairs}


@dataclass(frozen=True)
class Draws:
    """How intervals are drawn."""

    samples: int = 2000
    seed: int = 0

    def of(self, statistic: Statistic) -> dict[str, Any]:
        """A figure with its interval and the rows that it is of."""
        return {**asdict(interval(statistic, self.samples, self.seed)), "n": len(statistic)}

    def ends(self, statistic: Statistic) -> tuple[float, float] | tuple[None, None]:
        """The interval alone, of a figure that some draws cannot tell."""
        return spread(statistic, self.samples, self.seed)

    def mean(self, values: Sequence[float]) -> dict[str, Any] | None:
        return self.of(mean(values)) if values else None

    def share(self, said: Sequence[tuple[str, bool]]) -> dict[str, Any] | None:
        """The share of pairs (row, whether) of which it holds; pairs of one row are drawn together."""
        return self.of(by_group(mean([holds for _, holds in said]), [row for row, _ in said])) if said else None


def tally(judged: Judged, baseline: str | None, draws: Draws) -> dict[str, Any]:
    """All figures of one judge; a figure is {value, low, high, n}."""
    outcomes = judged.outcomes()
    found: dict[str, Any] = {"rows": len(judged.rows), "failures": _failures(judged.rows)}
    if any(judged.scores):
        found["marks"] = {model: draws.mean(marks) for model, marks in _marks(judged).items() if marks}
    if baseline is not None:
        others = [model for model in judged.models if model != baseline]
        found["against"] = {model: against(judged, outcomes, model, baseline, draws) for model in others}
    if len(judged.models) > 1 and outcomes:
        places = {row: place for place, row in enumerate(dict.fromkeys(row for row, *_ in outcomes))}
        games: list[Won] = [(places[row], one, other, share) for (row, one, other), share in outcomes.items()]
        strengths = elo(games, judged.models, len(places))
        found["elo"] = {model: draws.of(statistic) for model, statistic in strengths.items()}
    return found | {"biases": biases(judged, outcomes, draws)}


def _marks(judged: Judged) -> dict[str, list[float]]:
    return {model: [scores[model] for scores in judged.scores if model in scores] for model in judged.models}


def _failures(rows: Sequence[Row]) -> int:
    return sum(len(row["meta"]["judged"]["failures"]) for row in rows)


def against(judged: Judged, outcomes: Outcomes, model: str, baseline: str, draws: Draws) -> dict[str, Any]:
    """Win rate of a model over the baseline, plain and at equal length, and the p of no difference (sign test)."""
    rows, shares = [], []
    for (row, one, other), share in outcomes.items():
        if {one, other} == {model, baseline}:
            rows.append(row)
            shares.append(share if one == model else 1 - share)
    if not shares:
        return {"n": 0}
    sizes = judged.lengths()
    long, short = ([float(sizes[row, name]) for row in rows] for name in (model, baseline))
    won = np.array(shares)
    return {
        "win_rate": draws.of(mean(shares)),
        "lc_win_rate": Draws(min(draws.samples, 300), draws.seed).of(length_controlled(shares, long, short)),
        "ties": float((won == 0.5).mean()),
        "p": mcnemar(won > 0.5, won < 0.5),
        "length": [float(np.mean(long)), float(np.mean(short))],
    }


def corrected(told: Mapping[str, dict[str, Any]]) -> Mapping[str, dict[str, Any]]:
    """The figures of all judges, each p over the baseline with `holm`: corrected for all of them (Holm 1979)."""
    tests = [item for each in told.values() for item in each.get("against", {}).values() if "p" in item]
    for item, p in zip(tests, holm([item["p"] for item in tests]), strict=True):
        item["holm"] = p
    return told


def biases(judged: Judged, outcomes: Outcomes, draws: Draws) -> dict[str, Any]:
    """How often the place decided, for the first one of those, and how often the longer of two answers won."""
    pairs = [(row["id"], *pair) for row in judged.rows for pair in row["meta"]["judged"].get("pairs", ())]
    sizes = judged.lengths()
    longer = []
    for (row, one, other), share in outcomes.items():
        gap = sizes[row, one] - sizes[row, other]
        if gap and share != 0.5:
            longer.append((row, (gap > 0) == (share > 0.5)))
    found = {
        "position": draws.share([(row, flipped) for row, *_, flipped, _ in pairs]),
        "first_place": draws.share([(row, first) for row, *_, flipped, first in pairs if flipped]),
        "longer_wins": draws.share(longer),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def agreements(judges: Mapping[str, Judged], people: People | None, draws: Draws) -> dict[str, Any]:
    """Judges with each other and with people, and people among themselves, which no judge can be held to exceed."""
    outcomes = {name: judged.outcomes() for name, judged in judges.items()}
    found: dict[str, Any] = {
        "judges": {
            f"{one} and {other}": agree([(outcomes[one], outcomes[other])], draws.ends)
            for one, other in combinations(outcomes, 2)
        }
    }
    first = next(iter(judges.values()))
    said = opinions(people, first.rows, first.models) if people else Opinions()
    if said.persons:
        most = said.most
        found["people"] = among(said.persons, draws.ends)
        found["with_people"] = {
            name: {
                "majority": agree([(own, most)], draws.ends),
                "each": agree([(own, person) for person in said.persons], draws.ends),
            }
            for name, own in outcomes.items()
        }
    if said.marks:
        scoring = {name: judged for name, judged in judges.items() if any(judged.scores)}
        found["ratings"] = {name: _rated(judged, said.marks, draws) for name, judged in scoring.items()}
    return found


def _rated(judged: Judged, marks: Mapping[tuple[str, str], float], draws: Draws) -> dict[str, Any]:
    """Rank correlation of the judge's scores with people's marks, over all answers that both saw."""
    pairs = [
        (scores[model], marks[row["id"], model], row["id"])
        for row, scores in zip(judged.rows, judged.scores, strict=True)
        for model in judged.models
        if model in scores and (row["id"], model) in marks
    ]
    said, rated = ([pair[at] for pair in pairs] for at in range(2))
    return spearman(said, rated, [row for *_, row in pairs], draws.ends)


def self_preference(
    judges: Mapping[str, Judged], own: Mapping[str, Sequence[str]], draws: Draws
) -> dict[str, list[dict[str, Any]]]:
    """How much oftener a judge lets its own models' answers win than the judges do that are other models.

    `own`: judge → the judged models that it is itself, as where one model answered under several names.
    Panickssery et al. 2024, arXiv:2404.13076. Only of several judges can one say so: its own answers may be better.
    The interval of the excess is over rows, which all judges keep in a draw.
    """
    wins = {name: {model: _wins(judged, model) for model in judged.models} for name, judged in judges.items()}
    found: dict[str, list[dict[str, Any]]] = {}
    for judge, model in ((judge, model) for judge, models in own.items() for model in models):
        strangers = [told[model] for name, told in wins.items() if model not in own.get(name, ()) and model in told]
        others = [won for won in strangers if won]
        mine = wins[judge].get(model)
        if mine and others:
            statistic = _excess(mine, others)
            low, high = draws.ends(statistic)
            own_share, rest = _share(mine), float(np.mean([_share(won) for won in others]))
            item = {"model": model, "own": own_share, "others": rest, "excess": own_share - rest}
            found.setdefault(judge, []).append(item | {"low": low, "high": high})
    return found


#: row → what a model won there, and of how many comparisons
Wins = dict[str, tuple[float, int]]


def _wins(judged: Judged, model: str) -> Wins:
    found: Wins = {}
    for (row, one, other), share in judged.outcomes().items():
        if model in (one, other):
            won, of = found.get(row, (0.0, 0))
            found[row] = won + (share if one == model else 1 - share), of + 1
    return found


def _share(wins: Wins) -> float:
    """The share of its comparisons that a model won."""
    won, of = (sum(item[at] for item in wins.values()) for at in range(2))
    return float(won / of)


def _excess(mine: Wins, others: Sequence[Wins]) -> Statistic:
    """A judge's share less the mean of other judges', a column of sums for each judge's wins and comparisons."""
    rows = list(dict.fromkeys(row for wins in (mine, *others) for row in wins))
    terms = np.array([[wins.get(row, (0.0, 0)) for wins in (mine, *others)] for row in rows], dtype=np.float64)

    def value(sums: Floats) -> Floats:
        each = sums.reshape(len(sums), -1, 2)
        shares = each[..., 0] / each[..., 1]  # NaN where a draw holds none of a judge's rows
        found: Floats = shares[:, 0] - shares[:, 1:].mean(axis=1)
        return found

    return Statistic(terms.reshape(len(rows), -1), value)
