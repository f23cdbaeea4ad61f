"""From predictions to what an evaluation reports: scores with intervals, tables, comparisons, and one honest line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from tilth.data.bootstrap import Interval, Statistic, interval
from tilth.data.schema import Row
from tilth.errors import StageError
from tilth.evaluate.bootstrap import difference, holm, mcnemar, permutation
from tilth.evaluate.measures.answers import Squad
from tilth.evaluate.measures.base import Metric, Predicted
from tilth.evaluate.measures.classes import Classification
from tilth.evaluate.measures.entities import Entities
from tilth.evaluate.measures.likelihood import Perplexity

LEVEL = 0.05
#: metrics that are no share: shown as they are, with so many decimals; chrf may have a + for each order of words
_AS_IT_IS = {"perplexity": 3, "bits_per_byte": 4, "mcc": 3, "bleu": 1, "chrf": 1}


@dataclass(frozen=True)
class Scored:
    """One model on the rows: what can be resampled, and the tables that go with it."""

    statistics: Mapping[str, Statistic]
    detail: Mapping[str, Any]
    #: of a language model for each row how many bytes were scored, and whether the row was cut
    read: Sequence[tuple[int, bool]] = ()
    #: figure → the metric that it is one of
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        return next(iter(self.statistics))

    def less_is_better(self, figure: str) -> bool:
        return figure in self.metrics and self.metrics[figure].less_is_better


@dataclass(frozen=True)
class Comparison:
    """A model against the baseline: the paired difference, its interval, and the p of no difference.

    `holm`: that p corrected for all `family` tests that are made against the baseline, of all models in all metrics
    (Holm 1979, Scandinavian Journal of Statistics 6): the chance that any of them is called a difference by luck is
    kept, whichever a reader picks.
    """

    metric: str
    difference: Interval
    p: float
    test: str
    holm: float | None = None
    family: int = 1
    less_is_better: bool = False

    @property
    def decisive(self) -> float:
        """The p by which a difference is called one."""
        return self.p if self.holm is None else self.holm

    @property
    def worse(self) -> bool:
        """Whether the difference speaks against the model."""
        return (self.difference.value < 0) != self.less_is_better


def score(predicted: Predicted, metrics: Sequence[Metric] = ()) -> dict[str, Scored]:
    """Score predicted rows of models that are compared; without metrics by those that the rows call for.

    StageError where models of two kinds are mixed, as no comparison would hold, or a metric finds nothing to score.
    """
    kinds = {name: kind_of(rows[0]) for name, rows in predicted.items()}
    if len(set(kinds.values())) > 1:
        raise StageError(f"models of two kinds in one evaluation: {kinds}; write one evaluate stage for each kind")
    first = next(iter(predicted.values()))[0]
    chosen = tuple(metrics) or (default_metric(first),)
    for metric in chosen:
        if missing := [name for name in metric.reads if name not in first["meta"]]:
            raise StageError(
                f"{metric.kind} scores {' and '.join(metric.reads)}; of a model for {next(iter(kinds.values()))} "
                f"rows have no {', '.join(missing)}; take another metric or task"
            )
    found: dict[str, dict[str, Statistic]] = {name: {} for name in predicted}
    by: dict[str, Metric] = {}
    for metric in chosen:
        for name, statistics in metric.statistics(predicted).items():
            found[name] |= statistics
            by |= dict.fromkeys(statistics, metric)
    return {
        name: Scored(found[name], _detail(rows, kinds[name], chosen), _read(rows), by)
        for name, rows in predicted.items()
    }


def kind_of(row: Row) -> str:
    """What a model did with a row, by what it left there."""
    meta = row["meta"]
    if "answers" in meta:
        return "generation"
    if "prediction" not in meta:
        return "language_model"
    if isinstance(meta["prediction"], list):
        return "token_classification"
    return "question_answering" if row.get("question") is not None else "classification"


def default_metric(row: Row) -> Metric:
    """The metric that a predicted row calls for; StageError for an answer that several could score."""
    kind = kind_of(row)
    if kind == "generation":
        kind = "classification" if "prediction" in row["meta"] else "question_answering"
        if kind == "question_answering" and row.get("answers") is None:
            raise StageError("answers can be scored in many ways; set the task's metrics, such as [{kind: rouge}]")
    metrics: dict[str, type[Metric]] = {
        "classification": Classification, "token_classification": Entities, "question_answering": Squad,
        "language_model": Perplexity,
    }  # fmt: skip
    return metrics[kind]()


def _read(rows: Sequence[Row]) -> list[tuple[int, bool]]:
    metas = [row["meta"] for row in rows]
    return [(meta["bytes"], meta["truncated"]) for meta in metas if "bytes" in meta]


def _detail(rows: Sequence[Row], kind: str, metrics: Sequence[Metric]) -> dict[str, Any]:
    found: dict[str, Any] = {"task": kind, "truncated": sum(row["meta"]["truncated"] for row in rows)}
    for name in ("tokens", "withheld"):
        if name in rows[0]["meta"]:
            found[name] = sum(row["meta"][name] for row in rows)
    for metric in metrics:
        for name, value in metric.detail(rows).items():
            found[name] = {**found[name], **value} if isinstance(value, dict) and name in found else value
    return found


def intervals(scored: Scored, samples: int, seed: int) -> dict[str, Interval]:
    """Every score of a model with its 95 % interval."""
    return {name: interval(statistic, samples, seed) for name, statistic in scored.statistics.items()}


def compare(model: Scored, baseline: Scored, samples: int, seed: int) -> list[Comparison]:
    """Paired comparisons in every metric that both have; McNemar for what is right or wrong, else randomisation.

    Perplexity is a rate per token: of two language models that count tokens differently only bits per byte compare,
    and neither does where they read `unlike` parts of the rows.
    """
    if unlike(model, baseline):
        return []
    counts = [item.detail.get("tokens") for item in (model, baseline)]
    found = []
    for name, statistic in model.statistics.items():
        other = baseline.statistics.get(name)
        if other is None or (name == "perplexity" and counts[0] != counts[1]):
            continue
        gap = difference(statistic, other, samples, seed)
        right, theirs = statistic.right, other.right
        if right is not None and theirs is not None:
            p, test = mcnemar(right, theirs), "McNemar, exact"
        else:
            p, test = permutation(statistic, other, samples, seed), "approximate randomisation"
        found.append(Comparison(name, gap, p, test, less_is_better=model.less_is_better(name)))
    return found


def unlike(model: Scored, baseline: Scored) -> int:
    """Rows of which two language models scored different parts, as one of them read less of them.

    Bytes of rows that both read whole may differ by the first token, which is not scored: those are alike.
    """
    both = zip(model.read, baseline.read, strict=True) if model.read and baseline.read else ()
    return sum(bytes != theirs and (cut or cut_too) for (bytes, cut), (theirs, cut_too) in both)


def told_unlike(model: str, baseline: str, rows: int, of: int) -> str:
    """Why two language models are not compared, and what makes them comparable."""
    return (
        f"{model} and {baseline} read different parts of {rows} of {of} rows, as those are longer than one of them "
        "reads: not compared; set task.stride to score all of every row (encoder-decoders: leave out longer rows)"
    )


def compared_with(
    scored: Mapping[str, Scored],
    baseline: str | None,
    samples: int,
    seed: int,
    more: Mapping[str, Sequence[Comparison]] = MappingProxyType({}),
) -> dict[str, list[Comparison]]:
    """Every other model against the baseline, each p corrected for all tests of all models in all metrics.

    `more`: comparisons of a model that were made elsewhere, which are read together with these.
    """
    if baseline is None:
        return {}
    others = [name for name in scored if name != baseline]
    found = {name: [*compare(scored[name], scored[baseline], samples, seed), *more.get(name, ())] for name in others}
    tests = iter(corrected([item for items in found.values() for item in items]))
    return {name: [next(tests) for _ in items] for name, items in found.items()}


def corrected(tests: Sequence[Comparison]) -> list[Comparison]:
    """Tests that are read together, each p corrected for all of them; a lone one as it is."""
    if len(tests) < 2:
        return list(tests)
    ps = holm([item.p for item in tests])
    return [replace(item, holm=p, family=len(tests)) for item, p in zip(tests, ps, strict=True)]


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
            if item.holm is not None:
                found[f"{prefix}/{item.metric}_p_holm"] = item.holm
    return found


def plain(
    found: Mapping[str, Interval], scored: Scored, sizes: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    """Intervals as plain data, each with the number of rows that it is of; `sizes`: of those that are no statistic."""
    told = {name: len(statistic) for name, statistic in scored.statistics.items()} | dict(sizes)
    return {name: {**asdict(item), "n": told[name]} for name, item in found.items()}


def _three(name: str, item: Interval) -> dict[str, float]:
    return {name: item.value, f"{name}_low": item.low, f"{name}_high": item.high}


def compared_detail(compared: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Comparisons as plain data."""
    return [{**asdict(item), "level": LEVEL, "distinguishable": item.decisive < LEVEL} for item in compared]


def verdict(model: str, baseline: str, ours: Interval, theirs: Interval, comparison: Comparison, rows: int) -> str:
    """One line for people: both scores, their difference and what may be said of it.

    >>> verdict("augmented", "originals", Interval(.835, .796, .871), Interval(.802, .762, .840),
    ...         Comparison("accuracy", Interval(.033, -.008, .074), .12, "McNemar, exact"), 400)
    'augmented 83.5 % [79.6, 87.1] against originals 80.2 % [76.2, 84.0] accuracy: difference +3.3 points \
[-0.8, +7.4], p = 0.12: not distinguishable at n = 400'
    """
    name, gap = comparison.metric, comparison.difference
    better = "worse" if comparison.worse else "better"
    word = f"{model} is {better}" if comparison.decisive < LEVEL else "not distinguishable"
    unit = " points" if _decimals(name) is None else ""
    low, middle, high = (_number(name, value, "+") for value in (gap.low, gap.value, gap.high))
    corrected = "" if comparison.holm is None else f" by Holm over {comparison.family} tests"
    return (
        f"{model} {shown(name, ours)} against {baseline} {shown(name, theirs)} {name.replace('_', ' ')}: "
        f"difference {middle}{unit} [{low}, {high}], {p_value(comparison.decisive)}{corrected}: {word} at n = {rows}"
    )


def shown(metric: str, item: Interval) -> str:
    """A score with its interval: shares in per cent, perplexity and the like as they are."""
    percent = " %" if _decimals(metric) is None else ""
    return f"{_number(metric, item.value)}{percent} [{_number(metric, item.low)}, {_number(metric, item.high)}]"


def _number(metric: str, value: float, sign: str = "") -> str:
    decimals = _decimals(metric)
    return f"{100 * value:{sign}.1f}" if decimals is None else f"{value:{sign}.{decimals}f}"


def _decimals(metric: str) -> int | None:
    """Those of a metric that is no share; None for one that is, shown in per cent."""
    return _AS_IT_IS.get(metric.rstrip("+"))


def p_value(p: float) -> str:
    """`p = 0.12`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
