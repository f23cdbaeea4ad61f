"""What each worker of a training run does. Needs no Ray: `train(job, StoreLink(…))` trains in this process."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import set_seed

from tilth.config import digest
from tilth.data.loading import MEMBERS, Card, Pretrained, load_pretrained, load_tokenizer
from tilth.disk import own_folder
from tilth.storage import Store
from tilth.train import fitting, held_pairs, objectives, retention, trace
from tilth.train.adapters import Tensors, factors, plain_lora
from tilth.train.checkpoint import Link, scratch, upload
from tilth.train.company import Company
from tilth.train.config import Batches
from tilth.train.deepspeed import without_compiled_collectives
from tilth.train.job import FAILED, RANGE, RESULT, Job
from tilth.train.objectives import Parts
from tilth.train.range_test import settle_rate
from tilth.train.thaw import freeze
from tilth.train.validating import best_weights, measurements, save_weights, standing
from tilth.train.watch import Watch


def train(job: Job, link: Link, company: Company | None = None) -> None:
    """Train from the newest checkpoint, or from the start, and leave `model/`, the trace and `result.json`.

    A loss that is not finite ends training with `failed.json` instead. `company`: the trials it is trained with.
    """
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # a new head is reported as missing weights, which it is meant to be
    folder = _folder(job)
    try:
        trainer = _train(job, link, folder, company)
        link.settle()
        trainer.accelerator.wait_for_everyone()
        if trainer.args.local_process_index == 0:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if "LOCAL_RANK" not in os.environ:  # elsewhere the next attempt finds its rows prepared there
            shutil.rmtree(folder, ignore_errors=True)


def _train(job: Job, link: Link, folder: Path, company: Company | None) -> Any:
    start = time.monotonic()
    if job.stage.scale.zero and not job.stage.scale.gpus:
        without_compiled_collectives()
    watch = Watch(job.out, link, fillers=job.stage.fillers, batch=job.stage.optimisation.global_batch)
    batches = fitting.batches(job, link.world)
    trainer = objectives.build(_parts(job, link, folder, batches, company), watch)
    if trainer.args.n_gpu > 1:  # this process is one worker, whatever other devices it sees
        trainer.args._n_gpu = 1
        trainer._train_batch_size = trainer.args.train_batch_size
    peft = job.stage.model.peft
    principal = factors(trainer.model) if peft and peft.moves_base else {}
    resumed = link.resume()
    with _memory(job, batches, company):
        settle_rate(trainer, job, link.rank)
    if resumed is not None and trainer.average:
        trainer.average.load(resumed)
    if company is not None:
        company.join(trainer)
    with _memory(job, batches, company):
        trainer.train(resume_from_checkpoint=_path(resumed))
    measured = {} if watch.diverged or watch.stopped else _validate(job, trainer)
    if watch.diverged:
        if link.rank == 0:
            # what is not finite is no JSON
            figures = {name: str(watch.diverged[name]) for name in ("loss", "grad_norm") if name in watch.diverged}
            job.out.write_json(FAILED, {"fingerprint": job.fingerprint, **watch.diverged, **figures})
    elif not watch.stopped:
        if trainer.average:
            trainer.average.apply()
        watch.flush(trainer.state.global_step)
        with _alike(company):
            _leave(job, link, trainer, principal, {**measured, "seconds": time.monotonic() - start})
    return trainer


@contextmanager
def _memory(job: Job, batches: Batches, company: Company | None) -> Iterator[None]:
    """Memory that runs out asks for a smaller micro-batch; in company, which holds some of it too, it is raised."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        if company is not None:
            raise
        raise fitting.shrunk(job, batches) from error


def _alike(company: Company | None) -> AbstractContextManager[None]:
    """A worker alone that fails ends the others too, which are started anew with it; in company it must not."""
    return nullcontext() if company is None else company.alike()


def _folder(job: Job) -> Path:
    """This node's directory for prepared rows and checkpoints in the making, one for all its ranks."""
    if "LOCAL_RANK" not in os.environ:
        return scratch()
    place = hashlib.sha256(job.out.url.encode()).hexdigest()[:32]
    return own_folder("tilth-train") / place


def _path(folder: Path | None) -> str | None:
    return None if folder is None else str(folder)


def _parts(job: Job, link: Link, folder: Path, batches: Batches, company: Company | None) -> Parts:
    stage = job.stage
    set_seed(stage.optimisation.seed)  # a new head is drawn alike on every rank
    source = job.inputs.model(stage.model.name)
    peft = stage.model.peft
    quantized = peft is not None and peft.quantized

    def load() -> Pretrained:
        return load_pretrained(source, job.leaves, job.labels, stage.model.dtype, quantized=quantized)

    key = (source, job.leaves, job.labels, stage.model.dtype, stage.optimisation.seed)
    loaded = load() if company is None else company.lend(key, load)
    tokenizer = load_tokenizer(source)
    with _alike(company):
        if link.rank == 0:
            retention.probe_before(job, loaded.model, tokenizer)
    if stage.model.freeze:
        freeze(loaded.model, stage.model.freeze)
    adapter = peft.build(job.objective, loaded.new, str(source)) if peft else None
    rows = folder / "rows" if company is None else company.rows
    read = job.fingerprint if company is None else digest(_reading(job, str(source)))
    return Parts(job, link, loaded.model, tokenizer, adapter, folder, batches, rows, read[:32])


def _reading(job: Job, source: str) -> list[Any]:
    """All that decides how rows are prepared."""
    stage = job.stage
    return [
        job.data.url, job.row_type, job.objective, job.labels, job.conditioned, source, stage.learns, stage.max_length
    ]  # fmt: skip


def _validate(job: Job, trainer: Any) -> dict[str, Any]:
    """The mean loss over the validation split of the weights that are left, and of which step they are."""
    settings = job.stage.validation
    if settings is None:
        return {"validation_loss": None}
    if trainer.state.global_step not in dict(measurements(trainer.state)):
        trainer.evaluate()
    measured = measurements(trainer.state)
    if not settings.keeps_best:
        return {"validation_loss": measured[-1][1]}
    best = standing(measured, settings.min_delta)
    return {"validation_loss": best.loss, "best_step": best.step, "last_validation_loss": measured[-1][1]}


def _leave(job: Job, link: Link, trainer: Any, principal: Tensors, measured: dict[str, Any]) -> None:
    """Save the model, then `result.json`: the moment at which training is done."""
    folder = Path(trainer.args.output_dir) / "model"
    save_weights(trainer, folder, link.rank == 0)
    if link.rank == 0:
        if measured.get("best_step", trainer.state.global_step) != trainer.state.global_step:
            shutil.rmtree(folder)
            shutil.copytree(best_weights(job.out, measured["best_step"]), folder)
        stage = job.stage
        peft = stage.model.peft.kind if stage.model.peft else None
        if principal:
            plain_lora(folder, principal)
        base, state = (job.base, job.base_identity) if peft else ("", "")
        card = Card(job.leaves, job.labels, base, peft, stage.max_length, job.conditioned, base_identity=state)
        card.write(folder)
        for number, url in enumerate(job.members, start=1):
            shutil.copytree(Store(url).fetch("model"), folder / MEMBERS / str(number))
        measured |= held_pairs.figures(job, folder)
        job.out.remove("model")
        upload(folder, job.out, "model")
        trace.merge(job.out, trainer.state.global_step)
        measured |= retention.probe_after(job, folder)
        if "cut" in trainer.train_dataset.column_names:
            measured["cut"] = held_pairs.cut(trainer.train_dataset)
        if (note := fitting.noted(job)) is not None:
            measured["micro_batch"] = {"rows": note["rows"], "too_many": note["first"]}
        if stage.optimisation.learning_rate == "auto":
            measured["learning_rate"] = trainer.args.learning_rate
            measured["range_test"] = (job.out.read_json(RANGE) or {})["curve"]
        result = {"fingerprint": job.fingerprint, "steps": trainer.state.global_step, "workers": link.world}
        job.out.write_json(RESULT, {**result, "parameters": parameters(trainer.model), **measured})


def parameters(model: Any) -> dict[str, int]:
    """Trainable and all parameters; a partitioned parameter counts whole."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return {"trainable": sum(n for n, grad in sizes if grad), "total": sum(n for n, _ in sizes)}
