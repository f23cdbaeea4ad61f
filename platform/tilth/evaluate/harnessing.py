"""Running lm-evaluation-harness on a model directory, and its samples as figures of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilth import ui
from tilth.data.bootstrap import mean
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.evaluate.scores import Scored, compared_detail, compared_with, flat, intervals, plain

if TYPE_CHECKING:
    from tilth.evaluate.harness import Harness
    from tilth.runs import Artifact, Out

#: figures and samples of a task: {"figures": {name: value}, "samples": {name: [value of each document]}}
Told = dict[str, Any]


def harness(stage: Harness, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
    """See `Harness`."""
    context = Inputs.of(inputs, out.pins)
    told = {name: _told(name, stage, out, context) for name in stage.models}
    scored = {name: _scored(tasks) for name, tasks in told.items()}
    drawn = stage.bootstrap.samples, stage.bootstrap.seed
    found = {name: intervals(item, *drawn) for name, item in scored.items()}
    compared = compared_with(scored, stage.baseline, *drawn)
    points = {name: {key: v for task in tasks for key, v in task["figures"].items()} for name, tasks in told.items()}
    detail = {
        "split": "each task's own", "rows": sum(map(_documents, next(iter(told.values())))),
        "baseline": stage.baseline, "verdicts": [], "points": points,
        "models": {name: {**item.detail, "intervals": plain(found[name], item)} for name, item in scored.items()},
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
    figures = {
        _name(name, key): float(value)
        for name, each in found["results"].items()
        for key, value in each.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    }
    return {"figures": figures, "samples": _samples(found["samples"]), "versions": found["versions"]}


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


def _documents(told: Told) -> int:
    """Documents of a task, of all tasks of a group."""
    sizes = {name.partition("/")[0]: len(values) for name, values in told["samples"].items()}
    return sum(sizes.values())


def _scored(tasks: Sequence[Told]) -> Scored:
    """Figures that are means of their documents' values."""
    statistics = {
        name: mean(values)
        for told in tasks
        for name, values in told["samples"].items()
        if name in told["figures"] and np.isclose(np.mean(values), told["figures"][name], rtol=1e-9)
    }
    versions = {task: version for told in tasks for task, version in told["versions"].items()}
    return Scored(statistics, {"task": "harness", "versions": versions})
