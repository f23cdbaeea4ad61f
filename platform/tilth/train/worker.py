"""What each worker of a training run does. Needs no Ray: `train(job, StoreLink(…))` trains in this process."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import transformers
from transformers import set_seed

from tilth.data.loading import Card, load_pretrained, load_tokenizer
from tilth.train import objectives, trace
from tilth.train.adapters import Tensors, factors, plain_lora
from tilth.train.checkpoint import Link, RayLink, scratch, upload
from tilth.train.deepspeed import without_compiled_collectives
from tilth.train.job import FAILED, RESULT, Job
from tilth.train.objectives import Parts
from tilth.train.thaw import freeze
from tilth.train.watch import Watch


def entry(config: dict[str, Any]) -> None:
    """What Ray Train calls on every worker."""
    train(config["job"], RayLink())


def train(job: Job, link: Link) -> None:
    """Train from the newest checkpoint, or from the start, and leave `model/`, the trace and `result.json`.

    A loss that is not finite ends training with `failed.json` instead.
    """
    start = time.monotonic()
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # a new head is reported as missing weights, which it is meant to be
    folder = _folder(job)
    if job.stage.scale.deepspeed and not job.stage.scale.gpus:
        without_compiled_collectives()
    watch = Watch(job.out, link)
    trainer = objectives.build(_parts(job, link, folder), watch)
    peft = job.stage.model.peft
    principal = factors(trainer.model) if peft and peft.moves_base else {}
    trainer.train(resume_from_checkpoint=_path(link.resume()))
    if watch.diverged is not None:
        if link.rank == 0:
            line = {
                **watch.diverged,
                "loss": str(watch.diverged["loss"]),
                "grad_norm": str(watch.diverged["grad_norm"]),
            }
            job.out.write_json(FAILED, {"fingerprint": job.fingerprint, **line})
        return
    watch.flush(trainer.state.global_step)
    validation = _validate(trainer) if job.stage.validation else None
    _leave(job, link, trainer, principal, {"validation_loss": validation, "seconds": time.monotonic() - start})


def _folder(job: Job) -> Path:
    """This node's directory for prepared rows and checkpoints in the making, one for all its ranks."""
    if "LOCAL_RANK" not in os.environ:
        return scratch()
    place = hashlib.sha256(job.out.url.encode()).hexdigest()[:32]
    return Path(tempfile.gettempdir()) / f"tilth-train-{os.getuid()}" / place


def _path(folder: Path | None) -> str | None:
    return None if folder is None else str(folder)


def _parts(job: Job, link: Link, folder: Path) -> Parts:
    stage = job.stage
    batches = stage.scale.over(link.world).batches(stage.optimisation.global_batch)
    if batches is None:
        raise ValueError(stage.scale.over(link.world).batch_problem(stage.optimisation.global_batch))
    set_seed(stage.optimisation.seed)  # a new head is drawn alike on every rank
    source = job.inputs.model(stage.model.name)
    peft = stage.model.peft
    quantized = peft is not None and peft.quantized
    loaded = load_pretrained(source, job.leaves, job.labels, stage.model.dtype, quantized=quantized)
    if stage.model.freeze:
        freeze(loaded.model, stage.model.freeze)
    adapter = peft.build(job.objective, loaded.new, str(source)) if peft else None
    return Parts(job, link, loaded.model, load_tokenizer(source), adapter, folder, batches)


def _validate(trainer: Any) -> float:
    """Mean loss over the validation split."""
    inner = trainer.data_collator.inner
    if hasattr(inner, "epoch"):
        inner.epoch = -1  # masks of their own, the same whenever it is asked
    return float(trainer.evaluate()["eval_loss"])


def _leave(job: Job, link: Link, trainer: Any, principal: Tensors, measured: dict[str, Any]) -> None:
    """Save the model, then `result.json`: the moment at which training is done."""
    folder = Path(trainer.args.output_dir) / "model"
    trainer.save_model(str(folder))  # every rank takes part: ZeRO-3 gathers the weights
    if link.rank == 0:
        stage = job.stage
        peft = stage.model.peft.kind if stage.model.peft else None
        if principal:
            plain_lora(folder, principal)
        Card(job.leaves, job.labels, job.base if peft else "", peft, stage.max_length, job.conditioned).write(folder)
        for name in ("training_args.bin", "README.md"):  # a pickle, and a card that says nothing of this run
            (folder / name).unlink(missing_ok=True)
        job.out.remove("model")
        upload(folder, job.out, "model")
        trace.merge(job.out, trainer.state.global_step)
        result = {"fingerprint": job.fingerprint, "steps": trainer.state.global_step, "workers": link.world}
        job.out.write_json(RESULT, {**result, "parameters": parameters(trainer.model), **measured})
    trainer.accelerator.wait_for_everyone()
    if trainer.args.local_process_index == 0:
        shutil.rmtree(Path(trainer.args.output_dir).parent, ignore_errors=True)


def parameters(model: Any) -> dict[str, int]:
    """Trainable and all parameters; a partitioned parameter counts whole."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return {"trainable": sum(n for n, grad in sizes if grad), "total": sum(n for n, _ in sizes)}
