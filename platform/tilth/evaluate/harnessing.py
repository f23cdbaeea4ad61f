"""Running lm-evaluation-harness on a model directory, and its samples as figures of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilth import ui
from tilth.data.bootstrap import resamples
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.evaluate.harness_scores import Told, compared_of, intervals_of, is_mean, scored_of, sizes
from tilth.evaluate.scores import compared_detail, flat, plain

if TYPE_CHECKING:
    from tilth.evaluate.harness import Harness
    from tilth.runs import Artifact, Out

#: figures of texts as a whole are slow: the harness itself draws them a hundred times
SLOW, FEW = ("bleu", "chrf", "chrf++", "ter"), 200


def harness(stage: Harness, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
    """See `Harness`."""
    context = Inputs.of(inputs, out.pins)
    told = {name: _told(name, stage, out, context) for name in stage.models}
    scored = {name: scored_of(tasks) for name, tasks in told.items()}
    drawn = stage.bootstrap.samples, stage.bootstrap.seed
    found = {name: intervals_of(tasks, scored[name], *drawn) for name, tasks in told.items()}
    compared = compared_of(told, scored, stage.baseline, *drawn)
    points = {name: {key: v for task in tasks for key, v in task["figures"].items()} for name, tasks in told.items()}
    detail: dict[str, Any] = {
        "split": "each task's own", "rows": sum(sum(task["documents"].values()) for task in next(iter(told.values()))),
        "baseline": stage.baseline, "verdicts": [], "points": points,
        "models": {
            name: {**item.detail, "intervals": plain(found[name], item, sizes(told[name]))}
            for name, item in scored.items()
        },
        "differences": {name: compared_detail(items) for name, items in compared.items()},
    }  # fmt: skip
    without = {
        f"{name}/{key}": value for name, each in points.items() for key, value in each.items() if key not in found[name]
    }
    return out.artifact(flat(found, compared) | without, {"models": len(scored), "tasks": len(stage.tasks)}, detail)


def _told(name: str, stage: Harness, out: Out, context: Inputs) -> list[Told]:
    """What each task found, from storage where an earlier attempt finished it."""
    found = {task: out.store.read_json(f"harness/{name}/{task}.json") for task in stage.tasks}
    missing = [task for task, told in found.items() if told is None]
    if missing:
        ui.reporter().say(f"{out.stage}: {name} on {', '.join(missing)}")
        for task, told in _run(stage, context.model(stage.models[name]), missing):
            out.store.write_json(f"harness/{name}/{task}.json", told)
            found[task] = told
    return [found[task] for task in stage.tasks]


def _run(stage: Harness, folder: Path, tasks: Sequence[str]) -> Iterator[tuple[str, Told]]:
    """Each task on one model as soon as it is scored, in this process or, with workers, as a task of Ray."""
    if stage.resources.workers == 0:
        yield from scores(stage, folder, tasks)
        return
    import ray

    from tilth import cluster

    cluster.ray_ready()
    options = {**stage.resources.options, "num_returns": "streaming"}
    for found in ray.remote(scores).options(**options).remote(stage, folder, tasks):
        yield ray.get(found)


def scores(stage: Harness, folder: Path, tasks: Sequence[str]) -> Iterator[tuple[str, Told]]:
    """Loads the model in `folder` once and puts it to each task; what a task found comes before the next begins."""
    from lm_eval.models.huggingface import HFLM

    from tilth.data.loading import load_trained

    manager = _manager(stage.include, tasks)
    loaded = load_trained(folder, dtype=stage.dtype)
    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=stage.batch_size)
    for task in tasks:
        yield task, _one(stage, model, task, manager)


def _manager(include: str | None, tasks: Sequence[str]) -> Any:
    """Knows the tasks; the harness's own thousands are read only where one of them is meant."""
    from lm_eval.tasks import TaskManager

    folder = str(Path(include).parent) if include else None
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise StageError(f"harness: lm-evaluation-harness knows no task {unknown[0]!r}; set include for your own")
    return manager


def _one(stage: Harness, model: Any, task: str, manager: Any) -> Told:
    from lm_eval import simple_evaluate

    try:
        found = simple_evaluate(
            model, tasks=[task], num_fewshot=stage.shots, limit=stage.limit, bootstrap_iters=0, task_manager=manager,
            apply_chat_template=stage.form == "chat", random_seed=stage.bootstrap.seed,
        )  # fmt: skip
    except OSError as error:  # datasets says so for what it cannot reach
        raise StageError(f"harness: the data of {task} cannot be had: {error}") from error
    figures = _told_alone({
        _name(name, key): float(value)
        for name, each in found["results"].items()
        for key, value in each.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    })  # fmt: skip
    samples = _told_alone(_samples(found["samples"]))
    means = {name for name, values in samples.items() if is_mean(values, figures.get(name))}
    whole = [name for name in figures if name not in means and name.partition("/")[0] in found["samples"]]
    groups = found.get("group_subtasks", {})
    return {
        "figures": figures, "samples": samples, "versions": found["versions"],
        "documents": {name: len({item["doc_id"] for item in logged}) for name, logged in found["samples"].items()},
        "groups": {name: list(dict.fromkeys(_leaves(name, groups))) for name, parts in groups.items() if parts},
        "less": [name for name in figures if _less(name, found.get("higher_is_better", {}))],
        "draws": _told_alone(_draws(whole, found["samples"], manager, task, stage)) if whole else {},
    }  # fmt: skip


def _told_alone(found: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not told throughout: a task may have a figure of kinds of documents of which there are none."""
    return {name: value for name, value in found.items() if np.isfinite(value).all()}


def _leaves(name: str, groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The tasks of a group and of the groups in it, over all of which the harness takes its mean."""
    parts = groups.get(name, ())
    for part in parts:
        yield from _leaves(part, groups)
    if not parts:
        yield name


def _less(figure: str, higher: Mapping[str, Mapping[str, bool]]) -> bool:
    """Whether less is better in a figure."""
    task, _, metric = figure.partition("/")
    return higher.get(task, {}).get(metric.partition(" ")[0]) is False


def _draws(
    figures: Sequence[str], logged: Mapping[str, Sequence[Mapping[str, Any]]], manager: Any, task: str, stage: Harness
) -> dict[str, list[float]]:
    """Figures that are no mean over documents, of documents drawn anew, as the harness aggregates them.

    The same documents in the same draw of every model, so that their differences are paired.
    """
    found: dict[str, list[float]] = {}
    tasks = manager.load([task])["tasks"]
    for name, samples in logged.items():
        for metric, aggregate in tasks[name].aggregation().items():
            for kept in {sample["filter"]: None for sample in samples if metric in sample}:
                if (figure := _name(name, f"{metric},{kept}")) not in figures:
                    continue
                having = (sample for sample in samples if sample["filter"] == kept and metric in sample)
                items = [sample[metric] for sample in sorted(having, key=lambda item: item["doc_id"])]
                often = min(stage.bootstrap.samples, FEW) if metric in SLOW else stage.bootstrap.samples
                ui.reporter().say(f"{figure}: drawn {often:,} times for its interval")
                found[figure] = [
                    float(aggregate([items[at] for at in np.repeat(np.arange(len(items)), counts.astype(int))]))
                    for weights in resamples(len(items), often, stage.bootstrap.seed)
                    for counts in weights
                ]
    return found


def _name(task: str, key: str) -> str:
    """`task/metric`, with the filter that the answer went through where there are several."""
    metric, _, kept = key.partition(",")
    return f"{task}/{metric}" if kept in ("", "none") else f"{task}/{metric} {kept}"


def _samples(logged: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """The values of every document, by figure, where they are single numbers."""
    found: dict[str, list[float]] = {}
    for task, samples in logged.items():
        for sample in sorted(samples, key=lambda item: item["doc_id"]):
            for metric in sample["metrics"]:
                if isinstance(sample[metric], int | float):
                    found.setdefault(_name(task, f"{metric},{sample['filter']}"), []).append(float(sample[metric]))
    return found
