"""What tasks do to each other: every model scored task by task, and a model of several tasks against single-task ones.

Negative transfer (Wang et al. 2019, arXiv:1811.09751): a task is served worse by training with others than alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tilth.data.bootstrap import Interval
from tilth.errors import StageError
from tilth.evaluate.measures.base import Metric, Predicted
from tilth.evaluate.scores import (
    LEVEL,
    LOWER_IS_BETTER,
    Comparison,
    Scored,
    compare,
    intervals,
    score,
    told_unlike,
    unlike,
    verdict,
)


@dataclass(frozen=True)
class Slice:
    """The rows of one task: each model's scores, and each model of several tasks against the task's own."""

    rows: int
    metric: str
    models: Mapping[str, Mapping[str, Interval]]
    against_single: Mapping[str, Comparison]


def slices(
    predicted: Predicted, single: Mapping[str, str], samples: int, seed: int, metrics: Sequence[Metric] = ()
) -> dict[str, Slice]:
    """A slice for each task, none where the rows are of fewer than two; `single`: task → its own model.

    StageError where `single` names a task that no row has.
    """
    tasks = sorted({row["task"] for rows in predicted.values() for row in rows if row.get("task")})
    if unknown := sorted(set(single) - set(tasks)):
        raise StageError(f"single names {', '.join(unknown)}; the rows are of the tasks {', '.join(tasks) or 'none'}")
    if len(tasks) < 2:
        return {}
    return {task: _slice(task, predicted, single, samples, seed, metrics) for task in tasks}


def _slice(
    task: str, predicted: Predicted, single: Mapping[str, str], samples: int, seed: int, metrics: Sequence[Metric]
) -> Slice:
    mine = {name: [row for row in rows if row["task"] == task] for name, rows in predicted.items()}
    scored: dict[str, Scored] = score(mine, metrics)
    alone = single.get(task)
    several = [name for name in scored if alone is not None and name not in single.values()]
    for name in several:
        if apart := unlike(scored[name], scored[str(alone)]):
            raise StageError(f"{task}: {told_unlike(name, str(alone), apart, len(mine[name]))}")
    against = {name: compare(scored[name], scored[str(alone)], samples, seed)[0] for name in several}
    found = {name: intervals(item, samples, seed) for name, item in scored.items()}
    first = next(iter(scored.values()))
    return Slice(len(next(iter(mine.values()))), first.headline, found, against)


def matrix(found: Mapping[str, Slice], single: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Task trained on → task scored on → what its model gains there over the one trained there; above 0 is better."""
    gains: dict[str, dict[str, float]] = {}
    for source, model in single.items():
        gains[source] = {}
        for target in single:
            part = found[target]
            gap = part.models[model][part.metric].value - part.models[single[target]][part.metric].value
            gains[source][target] = -gap if part.metric in LOWER_IS_BETTER and gap else gap
    return gains


def harmed(found: Mapping[str, Slice], model: str) -> list[str]:
    """Tasks that `model` serves worse than their own: at the level divided by their number (Bonferroni)."""
    compared = {task: part.against_single[model] for task, part in found.items() if model in part.against_single}
    return [
        task
        for task, item in compared.items()
        if item.p < LEVEL / len(compared) and (item.difference.value < 0) != (item.metric in LOWER_IS_BETTER)
    ]


def verdicts(found: Mapping[str, Slice], single: Mapping[str, str]) -> list[str]:
    """A line for each task and each model of several tasks, then which tasks to separate."""
    lines = []
    for model in {name: None for part in found.values() for name in part.against_single}:
        for task, alone in single.items():
            part = found[task]
            item, scores = part.against_single[model], part.models
            both = scores[model][item.metric], scores[alone][item.metric]
            lines.append(f"{task}: {verdict(model, alone, *both, item, part.rows)}")
        lines.append(_advice(model, harmed(found, model), len(single)))
    return lines


def _advice(model: str, apart: Sequence[str], tasks: int) -> str:
    held = f"p < {LEVEL / tasks:.2g}, which is {LEVEL:g} over {tasks} tasks"
    if apart:
        return f"train {', '.join(apart)} apart from the other tasks of {model}: worse than alone ({held})"
    return f"{model}: no task is shown to be worse than alone ({held}); nothing speaks for separating them"


def detail(found: Mapping[str, Slice], single: Mapping[str, str]) -> dict[str, Any]:
    """Slices and transfer as plain data for the artifact."""
    several = dict.fromkeys(name for part in found.values() for name in part.against_single)
    return {
        "tasks": {task: _plain(part) for task, part in found.items()},
        "transfer": matrix(found, single),
        "apart": {model: harmed(found, model) for model in several},
    }


def flat(found: Mapping[str, Slice]) -> dict[str, float]:
    """Metrics of the artifact: task/TASK/MODEL/METRIC; transfer/TASK/MODEL against the task's own model, with _p."""
    numbers: dict[str, float] = {}
    for task, part in found.items():
        for model, scores in part.models.items():
            numbers[f"task/{task}/{model}/{part.metric}"] = scores[part.metric].value
        for model, item in part.against_single.items():
            gap = item.difference
            name = f"transfer/{task}/{model}"
            numbers |= {name: gap.value, f"{name}_low": gap.low, f"{name}_high": gap.high, f"{name}_p": item.p}
    return numbers


def _plain(part: Slice) -> dict[str, Any]:
    return {
        "rows": part.rows,
        "metric": part.metric,
        "models": {name: {key: asdict(item) for key, item in scores.items()} for name, scores in part.models.items()},
        "against_single": {name: asdict(item) for name, item in part.against_single.items()},
    }
