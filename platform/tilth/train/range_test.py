"""A learning rate found by a range test (Smith 2017, arXiv:1506.01186), before training begins.

The rate rises by a constant factor from step to step while micro-batches of the rows are learnt; the loss falls,
then rises. Taken is a tenth of the rate at which the smoothed loss was lowest. Weights and random numbers are put back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from tilth import ui
from tilth.errors import StageError
from tilth.train.job import RANGE, Job
from tilth.train.watch import ROWS, TOKENS

LOWEST, HIGHEST, STEPS = 1e-7, 1.0, 100
#: smoothing of the loss, and how far above its lowest it ends the test
SMOOTHING, GIVEN_UP = 0.9, 4.0
BELOW = 10.0
Curve = list[tuple[float, float]]


def settle_rate(trainer: Any, job: Job, rank: int) -> None:
    """Set the rate of a trainer whose recipe says `auto`: as found before, or found now by all ranks together."""
    if job.stage.optimisation.learning_rate != "auto":
        return
    found: list[Any] = [job.out.read_json(RANGE) if rank == 0 else None]
    if torch.distributed.is_initialized():
        broadcast_object_list(found)
    note = found[0]
    if note is None or note["fingerprint"] != job.fingerprint:
        curve = range_test(trainer)  # on every rank: losses gather what the others hold
        note = {"fingerprint": job.fingerprint, "rate": suggested(curve), "curve": curve}
        if rank == 0:
            job.out.write_json(RANGE, note)
            ui.reporter().say(f"{job.name}: learning rate {note['rate']:.2g}, found by a range test")
    trainer.args.learning_rate = note["rate"]


def range_test(trainer: Any) -> Curve:
    """(rate, smoothed loss) of every step; the model is left as it was."""
    model, device = trainer.model, trainer.args.device
    weights = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in weights]
    optimizer = torch.optim.AdamW(weights, lr=LOWEST, weight_decay=trainer.args.weight_decay)
    curve: Curve = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.to(device).train()
        if trainer.args.gradient_checkpointing:  # as training will, to fit into the same memory
            model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        for number, batch in zip(range(STEPS), _batches(trainer), strict=False):
            rate = LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1))
            loss = _step(trainer, optimizer, batch, rate)
            last = curve[-1][1] if curve else loss
            curve.append((rate, SMOOTHING * last + (1 - SMOOTHING) * loss))
            if not math.isfinite(loss) or curve[-1][1] > GIVEN_UP * min(value for _, value in curve):
                break
    with torch.no_grad():
        for parameter, value in zip(weights, before, strict=True):
            parameter.copy_(value)
    model.zero_grad()
    if told := getattr(trainer, "_metrics", None):  # what TRL noted of these steps is not of training
        told["train"].clear()
    return [point for point in curve if math.isfinite(point[1])]


def _batches(trainer: Any) -> Iterator[dict[str, Any]]:
    """Micro-batches in the order of training, over and over."""
    loader = trainer.get_train_dataloader()
    for batch in chain.from_iterable(repeat(loader)):
        yield {name: value for name, value in batch.items() if name not in (ROWS, TOKENS)}


def _step(trainer: Any, optimizer: Any, batch: dict[str, Any], rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for weight in weights:
        if weight.grad is not None:
            weight.grad = trainer.accelerator.reduce(weight.grad, "mean")
    if limit := trainer.args.max_grad_norm:
        torch.nn.utils.clip_grad_norm_(weights, limit)
    optimizer.step()
    optimizer.zero_grad()
    return float(trainer.accelerator.reduce(loss.detach(), "mean"))


def suggested(curve: Sequence[tuple[float, float]]) -> float:
    """A tenth of the rate at which the loss was lowest; StageError where the loss never fell."""
    lowest = min(range(len(curve)), key=lambda n: curve[n][1], default=0)
    if lowest == 0:
        raise StageError(
            "learning_rate: auto found no rate at which the loss falls; look at the rows, or set a learning rate"
        )
    return curve[lowest][0] / BELOW
