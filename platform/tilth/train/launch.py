"""Putting a job on workers and waiting for it, with progress; a finished result is verified, never trusted by name."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilth import cluster, placing, room, ui
from tilth.data.dataset import Dataset
from tilth.errors import StageError, StageStopped
from tilth.recipe import STOP
from tilth.train import fitting, tasks, trace
from tilth.train.job import BEST, FAILED, PROGRESS, RANGE, RESULT, Job

if TYPE_CHECKING:
    from tilth.storage import Store
    from tilth.train.config import Scale

CHECKPOINTS = "checkpoints"
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Trained:
    """What a finished job measured."""

    result: Mapping[str, Any]
    metrics: dict[str, Any]
    counts: dict[str, Any]


def launch(job: Job) -> Trained:
    """Train, or continue what was begun; StageError when workers fail for good or the loss is no number."""
    if finished(job) is None:
        for name in (FAILED, STOP):
            job.out.remove(name)
        with _progress(job):
            if job.stage.scale.workers:
                _on_ray(job)
            else:
                _here(job)
    return collected(job)


def collected(job: Job) -> Trained:
    """What a job that has ended leaves; StageError where that is no result."""
    result = finished(job)
    if result is None:
        raise _failure(job)
    for name in (CHECKPOINTS, BEST, trace.SEGMENTS, PROGRESS, RANGE, fitting.MICRO, STOP):
        job.out.remove(name)
    lines = trace.read(job.out)
    metrics = {**_metrics(result, lines), **job.stage.figures(result, lines)}
    return Trained(result, metrics, _counts(job, result, lines))


def finished(job: Job) -> Mapping[str, Any] | None:
    """The result on storage, if it is of this very fingerprint."""
    result: dict[str, Any] | None = job.out.read_json(RESULT)
    return result if result is not None and result["fingerprint"] == job.fingerprint else None


def _failure(job: Job) -> StageError:
    failed = job.out.read_json(FAILED)
    if failed is None and job.out.exists(STOP):
        return StageStopped(f"{job.name}: training was asked to end before its time")
    if failed is None:
        return StageError(f"{job.name}: training ended without a result under {job.out.url}; run it again")
    if "why" in failed:
        return StageError(f"{job.name}: {failed['why']}")
    rows = ", ".join(failed["rows"])
    return StageError(
        f"{job.name}: the loss is {failed['loss']} and the gradient norm {failed['grad_norm']} at step "
        f"{failed['step']}, on rows {rows}; look at these rows, or lower optimisation.learning_rate"
    )


def _here(job: Job) -> None:
    from tilth.train.checkpoint import StoreLink

    train = job.stage.trainer()
    link = StoreLink(own_checkpoints(job), keep=job.stage.checkpointing.keep)
    while True:
        try:
            return train(job, link)
        except fitting.MicroBatchError:  # the next attempt takes fewer rows at once; who follows the progress is told
            continue


def _on_ray(job: Job) -> None:
    cluster.ray_ready()
    from ray.train import TrainingFailedError
    from ray.train.torch import TorchTrainer

    scale = job.stage.scale
    place(scale)
    if len(job.stage.at_work) > 1:
        placing.refuse_crowded(job.stage.at_work)
    before = fitting.noted(job)
    trainer = TorchTrainer(
        _entry,
        train_loop_config={"job": job},
        torch_config=torch_config(scale),
        scaling_config=scaling(scale),
        run_config=_run_config(job),
    )
    try:
        with cluster.interrupts_given_back():
            trainer.fit()
    except TrainingFailedError as error:
        if fitting.noted(job) != before:  # workers are started anew as often as it takes to fit
            return _on_ray(job)
        raise StageError(f"{job.name}: {cause(error)}") from error


def _entry(config: dict[str, Any]) -> None:
    """What Ray Train calls on every worker; the driver, which only names it, loads none of the libraries for it."""
    from tilth.train.checkpoint import RayLink

    job: Job = config["job"]
    # DeepSpeed reads what it has written itself, and nothing else
    job.stage.trainer()(job, RayLink(own_checkpoints(job) if job.stage.scale.deepspeed is None else None))


def own_checkpoints(job: Job) -> Store:
    """Where training without Ray Train keeps its checkpoints."""
    return job.out.sub(f"{CHECKPOINTS}/{job.fingerprint[:16]}")


def cause(error: Any) -> str:
    """The first worker's own error, without the others that followed from it."""
    failures = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        return f"worker {rank} failed: {failure}"
    return str(error)


def torch_config(scale: Scale) -> Any:
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="nccl" if scale.gpus else "gloo")


def scaling(scale: Scale) -> Any:
    from ray.train import ScalingConfig

    elastic = scale.min_workers is not None and scale.min_workers < scale.workers
    workers = (scale.min_workers, scale.workers) if elastic else scale.workers
    return ScalingConfig(
        num_workers=workers,
        use_gpu=bool(scale.gpus),
        resources_per_worker=scale.each,
        label_selector=scale.nodes.selector or None,
    )


def _run_config(job: Job) -> Any:
    """Ray resumes a run silently by its name, so the name carries the fingerprint and the partitioning."""
    scale = job.stage.scale
    zero = scale.zero.stage if scale.zero else None
    # DeepSpeed's optimizer state fits only as many workers as wrote it
    layout = "ddp" if zero is None else f"zero{zero}x{scale.workers}"
    name = f"{job.name}-{job.fingerprint[:16]}-{layout}"
    return run_config(name, job.out.sub(CHECKPOINTS), scale, keep=job.stage.checkpointing.keep)


def run_config(name: str, store: Store, scale: Scale, keep: int | None = None) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig

    found: dict[str, Any] = {"storage_path": store.path()}
    if not store.is_local:
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        found["storage_filesystem"] = PyFileSystem(FSSpecHandler(store.fs))
    return RunConfig(
        name=name,
        failure_config=FailureConfig(max_failures=scale.max_failures),
        checkpoint_config=CheckpointConfig(num_to_keep=keep),
        worker_runtime_env={"env_vars": environment(scale)},
        **found,
    )


def environment(scale: Scale) -> dict[str, str]:
    """What workers find: the hub too, unless this process may not use it, since their nodes may lack a model."""
    variables = {"TOKENIZERS_PARALLELISM": "false"}
    if not scale.gpus:
        variables |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(max(1, int(scale.cpus)))}
    handed_on = ("TILTH_CACHE", "HF_HUB_OFFLINE")
    return variables | {name: os.environ[name] for name in handed_on if name in os.environ}


@contextmanager
def _progress(job: Job) -> Iterator[None]:
    """Show steps as rank 0 writes them to `progress.json`."""
    stop = threading.Event()
    job.out.remove(PROGRESS)

    def follow(advance: ui.Advance) -> None:
        shown, known, heard, since = 0, fitting.noted(job), "", time.monotonic()
        while True:
            last = stop.wait(POLL_SECONDS)
            if (note := fitting.noted(job)) != known and note is not None:
                fitting.say_smaller(job, note)
                known = note
            seen = job.out.read_json(PROGRESS)
            if seen is not None and (said := seen.get("said", "")) not in ("", heard):
                heard = said
                ui.reporter().say(f"{job.name}: {said}")
            if last:
                return
            if seen is not None and seen["step"] > shown:
                advance(seen["step"] - shown)
                shown, since = seen["step"], time.monotonic()
            elif job.stage.scale.workers and time.monotonic() - since >= room.LACK_SECONDS:
                since = time.monotonic()
                room.say_lacking(job.name, lambda: place(job.stage.scale, join_seconds=0))

    with ui.reporter().progress(job.name, steps(job), "steps") as advance:
        thread = threading.Thread(target=follow, args=(advance,), daemon=True, name="tilth-progress")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def place(scale: Scale, join_seconds: float = room.JOIN_SECONDS) -> None:
    """ClusterError where there is no place for the workers that training needs, nor will be after so many seconds."""
    room.refuse_unplaceable(
        scale.each, scale.min_workers or scale.workers, scale.nodes.selector, join_seconds=join_seconds
    )


def steps(job: Job) -> int | None:
    """Optimizer steps of the job, if no row is too long to be learnt from; None where only packing will tell."""
    optimisation = job.stage.optimisation
    if job.stage.pack_length and not optimisation.steps:
        return None
    rows = Dataset.open(job.data).splits()[job.stage.split]
    return optimisation.steps or int(-(-rows // optimisation.global_batch) * optimisation.epochs)


def _metrics(result: Mapping[str, Any], lines: list[trace.Line]) -> dict[str, Any]:
    seconds = sum(line["seconds"] for line in lines)
    tokens = sum(line["tokens"] for line in lines)
    return {
        "train_loss": lines[-1]["loss"],
        "validation_loss": result["validation_loss"],
        **_forgotten(result),
        **_answered(lines),
        **{name: result[name] for name in ("best_step", "last_validation_loss", "learning_rate") if name in result},
        "steps": result["steps"],
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
        "training_seconds": round(seconds, 2),
        **tasks.metrics(lines),
        **{name: lines[-1][name] for name in ("reward_margin", "reward_accuracy") if name in lines[-1]},
    }


def _answered(lines: list[trace.Line]) -> dict[str, float]:
    """How well held-out rows were answered when they were last asked."""
    asked = [line["answers"] for line in lines if "answers" in line]
    return {f"answers {name}": asked[-1][name] for name in ("exact_match", "rouge_l")} if asked else {}


def _forgotten(result: Mapping[str, Any]) -> dict[str, float]:
    """How every general probe changed by training."""
    probes = result.get("probes", {"before": {}, "after": {}})
    return {f"{name} change": probes["after"][name] - value for name, value in probes["before"].items()}


def _counts(job: Job, result: Mapping[str, Any], lines: list[trace.Line]) -> dict[str, Any]:
    """Rows of the split, and how many of them a step saw; rows that were replayed among them, and pairs cut, if any."""
    rows = Dataset.open(job.data).splits()[job.stage.split]
    seen = {row for line in lines for row in line["rows"]}
    replayed = {row for row in seen if row.startswith("@")}
    more = {"replayed": len(replayed)} if job.stage.forgets.replay else {}
    more |= {"cut": result["cut"]} if "cut" in result else {}
    return {"rows": rows, "rows_seen": len(seen - replayed), **more}
