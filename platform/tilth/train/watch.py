"""What is seen of a training run: one line for each step, live progress, and the stop on a loss that is no number."""

from __future__ import annotations

import math
import os
import socket
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

from tilth.recipe import STOP
from tilth.storage import Store
from tilth.train import trace
from tilth.train.adapters import learns_prompt, load_learnt, save_learnt
from tilth.train.checkpoint import Link
from tilth.train.company import Company
from tilth.train.config import Fillers
from tilth.train.job import PROGRESS

ROWS = "row_ids"
TOKENS = "row_tokens"
PROGRESS_SECONDS = 0.5
#: how often Ray is asked whether a node is about to go; clouds give notice of half a minute and more
NOTICE_SECONDS = 5.0
#: why training ended at a (step, loss on held-out rows)
NO_NUMBER = (
    "the loss on held-out rows is {1} after step {0}, while that of training is a number: look for held-out rows that "
    "are nothing like those of training, lower optimisation.learning_rate, or compute in float32"
)
#: what TRL says of preferences: the mean difference of rewards, and how often the better answer has the higher one
EXTRA = {
    "rewards/margins": "reward_margin", "rewards/accuracies": "reward_accuracy",
    "margin": "reward_margin", "accuracy": "reward_accuracy",
}  # fmt: skip


@dataclass
class Watch:
    """The record of one rank; rank 0 writes for all."""

    store: Store
    link: Link
    rows: list[str] = field(default_factory=list)
    tokens: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    #: the line of the last step that is done
    last: dict[str, Any] | None = None
    #: the line of the step whose loss or gradient was not finite, or why the loss on held-out rows ended training
    diverged: dict[str, Any] | None = None
    #: whether the driver wants training to end before its time
    stopped: bool = False
    #: (step, loss on held-out rows) of every measurement so far
    measured: list[tuple[int, float]] = field(default_factory=list)
    #: what else the line of the step at hand is to hold
    extra: dict[str, Any] = field(default_factory=dict)
    #: a node is about to go: what was learnt is to be saved at this step
    leaving: bool = False
    #: how rows that only fill up are to be taken off what is told of a step; None where they count for nothing
    fillers: Fillers | None = None
    #: rows of a step, those that only fill it up included
    batch: int = 0
    _then: float = 0.0
    _shown: float = 0.0
    _asked: float = 0.0

    def start(self) -> None:
        """Start the clock of the first step."""
        self._then = time.monotonic()

    def saw(self, rows: list[Any], tokens: list[int]) -> None:
        """Count a micro-batch: of each sequence its row's id, or its rows' ids, and its tokens without padding.

        What has no id only fills up the last batch.
        """
        for names, count in zip(rows, tokens, strict=True):
            if names:
                self.rows += [names] if isinstance(names, str) else names
                self.tokens += count

    def step(self, step: int, total: int, epoch: float, logs: dict[str, float]) -> None:
        """Close an optimizer step: gather every rank's rows, and note whether training may go on."""
        now = time.monotonic()
        due = now - self._shown >= PROGRESS_SECONDS
        stop = due and self.link.rank == 0 and self.store.exists(STOP)
        ask = now - self._asked >= NOTICE_SECONDS
        parts = gather_object([{"rows": self.rows, "tokens": self.tokens, "ask": ask, "stop": stop}])
        self.stopped = parts[0]["stop"]  # as rank 0 saw it, on every rank alike
        self.leaving = False
        if parts[0]["ask"]:  # by the clock of rank 0, since all have to ask together
            self._asked, self.leaving = now, self.link.preempted()
        line = {
            "step": step, "epoch": round(epoch, 6), "loss": logs["loss"], "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"), "tokens": sum(part["tokens"] for part in parts),
            "seconds": round(now - self._then, 4), "rows": [row for part in parts for row in part["rows"]],
            **self.extra,
        }  # fmt: skip
        line |= {name: logs[key] for key, name in EXTRA.items() if key in logs}
        if self.fillers is not None:
            real = len(line["rows"]) / self.batch
            line["loss"] = (line["loss"] - (1 - real) * self.fillers.loss) / real
            if self.fillers.figures:
                line |= {name: line[name] / real for name in EXTRA.values() if name in line}
        self.rows, self.tokens, self._then, self.extra = [], 0, now, {}
        if not all(math.isfinite(value) for value in (line["loss"], line["grad_norm"] or 0.0)):
            self.diverged = line
        self.lines.append(line)
        self.last = line
        if due:
            self.show(step, total)

    def validated(self, measured: list[tuple[int, float]], total: int, answers: dict[str, Any] | None = None) -> None:
        """Note (step, loss on held-out rows) of every measurement so far, the last of which is new, and the answers
        to these rows where they were asked for. One that is no number ends training: no weights are the best by it.
        """
        if not math.isfinite(measured[-1][1]):
            self.diverged = {"step": measured[-1][0], "why": NO_NUMBER.format(*measured[-1])}
            return
        self.measured = measured
        if self.lines:
            self.lines[-1] |= {"validation_loss": measured[-1][1], **({"answers": answers} if answers else {})}
        self.show(measured[-1][0], total)

    def show(self, step: int, total: int) -> None:
        """Tell the driver how far training is, and who trains."""
        self._shown = time.monotonic()
        if self.link.rank == 0:
            where = {"host": socket.gethostname(), "pid": os.getpid()}
            self.store.write_json(PROGRESS, {"step": step, "total": total, "measured": self.measured, **where})

    def flush(self, step: int) -> None:
        """Write the lines up to `step` that are not written yet."""
        if self.link.rank == 0 and self.lines:
            trace.write_segment(self.store, step, self.lines)
        self.lines = []


class Watched:
    """Mixed into a transformers Trainer: takes the row ids out of its batches and closes each step."""

    watch: Watch
    #: the average of the weights, where one is kept
    average: Any = None
    #: the trials that it is trained with, if any
    company: Company | None = None

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        self.watch.saw(inputs.pop(ROWS), inputs.pop(TOKENS))
        if self.company is None:
            return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        with self.company.unreduced(model):
            loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
            self.company.backward()
        return loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        del inputs[ROWS], inputs[TOKENS]
        return super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trainer: Any = self
        if not load_learnt(trainer.model if model is None else model, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self.average.applied() if self.average else nullcontext():
            return self._evaluate(*args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        masks: Any = getattr(self.data_collator, "inner", None)  # type: ignore[attr-defined]
        if not hasattr(masks, "epoch"):
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]
        epoch, masks.epoch = masks.epoch, -1  # masks of their own, the same whenever it is asked
        try:
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]
        finally:
            masks.epoch = epoch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)  # type: ignore[misc]
        trainer: Any = self
        if "loss" not in logs:
            return
        state, control = trainer.state, trainer.control
        self.watch.step(state.global_step, state.max_steps, state.epoch, logs)
        if self.watch.diverged is not None or self.watch.stopped:
            # every rank sees the same mean loss and the same wish, so all of them stop here
            control.should_training_stop, control.should_save, control.should_evaluate = True, False, False
        elif self.watch.leaving and state.global_step < state.max_steps:
            control.should_save = True


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Hands each checkpoint that the Trainer saves to the link, and removes the local copy."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the finished model follows at once

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.watch.flush(state.global_step)
        if self.watch.link.rank == 0 and learns_prompt(kwargs["model"]):
            save_learnt(kwargs["model"], folder)
        self.watch.link.commit(folder, state.global_step)
        self.watch.show(state.global_step, state.max_steps)


class Epochs(TrainerCallback):  # type: ignore[misc]
    """Tells a collator which epoch it is in."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.collator.epoch = int(state.epoch or 0)
