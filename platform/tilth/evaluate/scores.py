"""From predictions to what an evaluation reports: scores with intervals, tables, comparisons, and one honest line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tilth.data.bootstrap import Interval, Statistic, interval
from tilth.data.schema import Row
from tilth.errors import StageError
from tilth.evaluate import metrics
from tilth.evaluate.bootstrap import difference, mcnemar, permutation

LEVEL = 0.05
#: metrics of which less is better
LOWER_IS_BETTER = frozenset({"perplexity"})


@dataclass(frozen=True)
class Scored:
    """One model on the rows: what can be resampled, and the tables that go with it."""

    statistics: Mapping[str, Statistic]
    detail: Mapping[str, Any]

    @property
    def headline(self) -> str:
        return next(iter(self.statistics))


@dataclass(frozen=True)
class Comparison:
    """A model against the baseline: the paired difference, its interval, and the p of no difference."""

    metric: str
    difference: Interval
    p: float
    test: str


def score(rows: Sequence[Row], labels: Sequence[str]) -> Scored:
    """Score predicted rows; `labels` are those that any of the compared models or the data knows."""
    if "prediction" in rows[0]["meta"]:
        return _classification(rows, labels)
    nll, tokens = ([row["meta"][name] for row in rows] for name in ("nll", "tokens"))
    truncated = sum(row["meta"]["truncated"] for row in rows)
    detail = {"task": "language_model", "tokens": sum(tokens), "truncated": truncated}
    return Scored({"perplexity": metrics.perplexity(nll, tokens)}, detail)


def _classification(rows: Sequence[Row], labels: Sequence[str]) -> Scored:
    truth, predicted = _truth(rows), [row["meta"]["prediction"] for row in rows]
    names = metrics.label_set(truth, predicted)
    detail = {
        "task": "classification",
        "truncated": sum(row["meta"]["truncated"] for row in rows),
        "averages": metrics.averages(truth, predicted),
        "per_class": metrics.per_class(truth, predicted),
        "labels": names,
        "confusion": metrics.confusion(truth, predicted, names).tolist(),
    }
    macro = metrics.f1_macro(truth, predicted, labels)
    return Scored({"accuracy": metrics.accuracy(truth, predicted), "f1_macro": macro}, detail)


def _truth(rows: Sequence[Row]) -> list[str]:
    for row in rows:
        if row.get("label") is None:
            raise StageError(f"row {row['id']} has no label; a classifier is evaluated on labelled rows")
    return [row["label"] for row in rows]


def known_labels(models: Mapping[str, Sequence[Row]]) -> list[str]:
    """Every label that some row holds or some model predicts."""
    pairs = ((row.get("label"), row["meta"].get("prediction")) for rows in models.values() for row in rows)
    return sorted({label for pair in pairs for label in pair if label is not None})


def intervals(scored: Scored, samples: int, seed: int) -> dict[str, Interval]:
    """Every score of a model with its 95 % interval."""
    return {name: interval(statistic, samples, seed) for name, statistic in scored.statistics.items()}


def compare(model: Scored, baseline: Scored, samples: int, seed: int) -> list[Comparison]:
    """Paired comparisons in every metric that both have; McNemar for accuracy, randomisation for the others.

    StageError where two language models count tokens differently: perplexity is a rate per token.
    """
    counts = [item.detail.get("tokens", 0) for item in (model, baseline)]
    if counts[0] != counts[1]:
        raise StageError(
            f"the models cut the rows into {counts[0]:,} and {counts[1]:,} tokens, so their perplexities cannot be "
            "compared; leave out baseline"
        )
    found = []
    for name, statistic in model.statistics.items():
        other = baseline.statistics[name]
        gap = difference(statistic, other, samples, seed)
        if name == "accuracy":
            p, test = mcnemar(statistic.terms[:, 0], other.terms[:, 0]), "McNemar, exact"
        else:
            p, test = permutation(statistic, other, samples, seed), "approximate randomisation"
        found.append(Comparison(name, gap, p, test))
    return found


def flat(
    scores: Mapping[str, Mapping[str, Interval]], compared: Mapping[str, Sequence[Comparison]]
) -> dict[str, float]:
    """Metrics of the artifact: MODEL/METRIC, _low, _high; difference/METRIC, with _p, where one model is compared.

    Where several are compared, difference/MODEL/METRIC.
    """
    found: dict[str, float] = {}
    for model, named in scores.items():
        for metric, value in named.items():
            found |= _three(f"{model}/{metric}", value)
    for model, comparisons in compared.items():
        prefix = "difference" if len(compared) == 1 else f"difference/{model}"
        for item in comparisons:
            found |= _three(f"{prefix}/{item.metric}", item.difference)
            found[f"{prefix}/{item.metric}_p"] = item.p
    return found


def _three(name: str, item: Interval) -> dict[str, float]:
    return {name: item.value, f"{name}_low": item.low, f"{name}_high": item.high}


def compared_detail(compared: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Comparisons as plain data."""
    return [{**asdict(item), "level": LEVEL, "distinguishable": item.p < LEVEL} for item in compared]


def verdict(model: str, baseline: str, ours: Interval, theirs: Interval, comparison: Comparison, rows: int) -> str:
    """One line for people: both scores, their difference and what may be said of it.

    >>> verdict("augmented", "originals", Interval(.835, .796, .871), Interval(.802, .762, .840),
    ...         Comparison("accuracy", Interval(.033, -.008, .074), .12, "McNemar, exact"), 400)
    'augmented 83.5 % [79.6, 87.1] against originals 80.2 % [76.2, 84.0] accuracy: difference +3.3 points \
[-0.8, +7.4], p = 0.12: not distinguishable at n = 400'
    """
    name, gap = comparison.metric, comparison.difference
    better = "worse" if (gap.value < 0) != (name in LOWER_IS_BETTER) else "better"
    word = f"{model} is {better}" if comparison.p < LEVEL else "not distinguishable"
    unit = "" if name in LOWER_IS_BETTER else " points"
    low, middle, high = (_number(name, value, "+") for value in (gap.low, gap.value, gap.high))
    return (
        f"{model} {shown(name, ours)} against {baseline} {shown(name, theirs)} {name.replace('_', ' ')}: "
        f"difference {middle}{unit} [{low}, {high}], {p_value(comparison.p)}: {word} at n = {rows}"
    )


def shown(metric: str, item: Interval) -> str:
    """A score with its interval: shares in per cent, perplexity as it is."""
    percent = "" if metric in LOWER_IS_BETTER else " %"
    return f"{_number(metric, item.value)}{percent} [{_number(metric, item.low)}, {_number(metric, item.high)}]"


def _number(metric: str, value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if metric in LOWER_IS_BETTER else f"{100 * value:{sign}.1f}"


def p_value(p: float) -> str:
    """`p = 0.12`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
