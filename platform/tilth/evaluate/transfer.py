"""What tasks do to each other: every model scored task by task, and a model of several tasks against single-task ones.

Negative transfer (Wang et al. 2019, arXiv:1811.09751): a task is served worse by training with others than alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tilth.data.bootstrap import Interval
from tilth.data.schema import Row
from tilth.errors import StageError
from tilth.evaluate.measures.base import Metric, Predicted
from tilth.evaluate.scores import (
    LEVEL,
    Comparison,
    Scored,
    compare,
    corrected,
    intervals,
    score,
    told_unlike,
    unlike,
    verdict,
)


@dataclass(frozen=True)
class Slice:
    """The rows of one task: each model's scores, and each model of several tasks against the task's own.

    `metric` is what models are compared by: the first of the scores, but for perplexity bits per byte where models
    count tokens differently in any task.
    """

    rows: int
    metric: str
    models: Mapping[str, Mapping[str, Interval]]
    against_single: Mapping[str, Comparison]
    less_is_better: bool = False


def slices(
    predicted: Predicted, single: Mapping[str, str], samples: int, seed: int, metrics: Sequence[Metric] = ()
) -> dict[str, Slice]:
    """A slice for each task that has figures, none where the rows are of fewer than two; `single`: task → its model.

    StageError where `single` names a task that no row has, or models read different parts of a task's rows.
    """
    tasks = sorted({row["task"] for rows in predicted.values() for row in rows if row.get("task")})
    if unknown := sorted(set(single) - set(tasks)):
        raise StageError(f"single names {', '.join(unknown)}; the rows are of the tasks {', '.join(tasks) or 'none'}")
    if len(tasks) < 2:
        return {}
    scored = {task: found for task in tasks if (found := _scored(task, predicted, metrics, task in single))}
    for task, alone in single.items():
        _refuse_unlike(task, scored[task], alone)
    by_byte = any(_counted_otherwise(scored[task], alone) for task, alone in single.items())
    parts = {task: _slice(items, by_byte, single.get(task), single, samples, seed) for task, items in scored.items()}
    tests = iter(corrected([item for part in parts.values() for item in part.against_single.values()]))
    return {
        task: replace(part, against_single={name: next(tests) for name in part.against_single})
        for task, part in parts.items()
    }


def _scored(task: str, predicted: Predicted, metrics: Sequence[Metric], compared: bool) -> dict[str, Scored] | None:
    """None where metrics say nothing of a task's rows, as AUC of those of one label, or nothing that rows have a part
    in, as diversity. StageError where its models are to be compared by them."""
    try:
        found = score(_of(task, predicted), metrics)
    except StageError as error:
        if compared:
            raise StageError(f"{task}: {error}") from error
        return None
    if all(item.statistics for item in found.values()):
        return found
    if compared:
        raise StageError(f"{task}: single compares models row by row; add a metric that rows have a part in")
    return None


def _of(task: str, predicted: Predicted) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row["task"] == task] for name, rows in predicted.items()}


def _refuse_unlike(task: str, scored: Mapping[str, Scored], alone: str) -> None:
    """StageError where a model read other parts of the task's rows than the task's own model."""
    for name, item in scored.items():
        if apart := unlike(item, scored[alone]):
            raise StageError(f"{task}: {told_unlike(name, alone, apart, len(item.read))}")


def _counted_otherwise(scored: Mapping[str, Scored], alone: str) -> bool:
    """Whether a model counts the tokens of the rows otherwise than `alone`: then perplexities are not compared."""
    return any(item.detail.get("tokens") != scored[alone].detail.get("tokens") for item in scored.values())


def _slice(
    scored: Mapping[str, Scored],
    by_byte: bool,
    alone: str | None,
    single: Mapping[str, str],
    samples: int,
    seed: int,
) -> Slice:
    first = next(iter(scored.values()))
    metric = "bits_per_byte" if by_byte and first.headline == "perplexity" else first.headline
    several = [name for name in scored if alone is not None and name not in single.values()]
    against = {
        name: next(item for item in compare(scored[name], scored[str(alone)], samples, seed) if item.metric == metric)
        for name in several
    }
    found = {name: intervals(item, samples, seed) for name, item in scored.items()}
    rows = len(next(iter(first.statistics.values())))
    return Slice(rows, metric, found, against, first.less_is_better(metric))


def matrix(found: Mapping[str, Slice], single: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Task trained on → task scored on → what its model gains there over the one trained there; above 0 is better."""
    gains: dict[str, dict[str, float]] = {}
    for source, model in single.items():
        gains[source] = {}
        for target in single:
            part = found[target]
            gap = part.models[model][part.metric].value - part.models[single[target]][part.metric].value
            gains[source][target] = -gap if part.less_is_better and gap else gap
    return gains


def harmed(found: Mapping[str, Slice], model: str) -> list[str]:
    """Tasks that `model` serves worse than their own, by a p that is corrected for all tasks and models."""
    compared = {task: part.against_single[model] for task, part in found.items() if model in part.against_single}
    return [task for task, item in compared.items() if item.decisive < LEVEL and item.worse]


def verdicts(found: Mapping[str, Slice], single: Mapping[str, str]) -> list[str]:
    """A line for each task and each model of several tasks, then which tasks to separate."""
    lines = []
    for model in {name: None for part in found.values() for name in part.against_single}:
        for task, alone in single.items():
            part = found[task]
            item, scores = part.against_single[model], part.models
            both = scores[model][item.metric], scores[alone][item.metric]
            lines.append(f"{task}: {verdict(model, alone, *both, item, part.rows)}")
        lines.append(_advice(model, harmed(found, model)))
    return lines


def _advice(model: str, apart: Sequence[str]) -> str:
    if apart:
        return f"train {', '.join(apart)} apart from the other tasks of {model}: worse than alone"
    return f"{model}: no task is shown to be worse than alone; nothing speaks for separating them"


def detail(found: Mapping[str, Slice], single: Mapping[str, str]) -> dict[str, Any]:
    """Slices and transfer as plain data for the artifact."""
    several = dict.fromkeys(name for part in found.values() for name in part.against_single)
    return {
        "tasks": {task: _plain(part) for task, part in found.items()},
        "transfer": matrix(found, single),
        "apart": {model: harmed(found, model) for model in several},
    }


def flat(found: Mapping[str, Slice]) -> dict[str, float]:
    """Metrics of the artifact: task/TASK/MODEL/METRIC; transfer/TASK/MODEL over the task's own, _p and _p_holm."""
    numbers: dict[str, float] = {}
    for task, part in found.items():
        for model, scores in part.models.items():
            numbers[f"task/{task}/{model}/{part.metric}"] = scores[part.metric].value
        for model, item in part.against_single.items():
            gap = item.difference
            name = f"transfer/{task}/{model}"
            numbers |= {name: gap.value, f"{name}_low": gap.low, f"{name}_high": gap.high, f"{name}_p": item.p}
            if item.holm is not None:
                numbers[f"{name}_p_holm"] = item.holm
    return numbers


def _plain(part: Slice) -> dict[str, Any]:
    return {
        "rows": part.rows,
        "metric": part.metric,
        "models": {name: {key: asdict(item) for key, item in scores.items()} for name, scores in part.models.items()},
        "against_single": {name: asdict(item) for name, item in part.against_single.items()},
    }
