"""Loss on held-out rows while training goes on: when to stop, and which weights to keep.

How training stands is read from the Trainer's own log, which every checkpoint carries: a resumed run stops at the
same step and keeps the same weights as one that nothing interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tilth.storage import Store
from tilth.train.answering import Answering
from tilth.train.bests import best_at, keep_bests
from tilth.train.checkpoint import upload
from tilth.train.config import Validation
from tilth.train.job import BEST
from tilth.train.watch import Watch


@dataclass(frozen=True)
class Standing:
    """The best of the measurements so far, and how many came after it."""

    step: int
    loss: float
    waited: int


def standing(measured: Sequence[tuple[int, float]], min_delta: float = 0.0) -> Standing:
    """How `measured`, (step, loss) in order and at least one, stand; better is lower by more than `min_delta`."""
    best = 0
    for number, (_, loss) in enumerate(measured):
        if loss < measured[best][1] - min_delta:
            best = number
    step, loss = measured[best]
    return Standing(step, loss, waited=len(measured) - 1 - best)


def measurements(state: Any) -> list[tuple[int, float]]:
    """(step, loss) of every evaluation of a Trainer so far, each step once."""
    found = {line["step"]: line["eval_loss"] for line in state.log_history if "eval_loss" in line}
    return sorted(found.items())


class Validating(TrainerCallback):  # type: ignore[misc]
    """Notes each measurement in the trace, saves the weights of the best, and ends training when patience is over."""

    def __init__(self, settings: Validation, watch: Watch, trainer: Any, answering: Answering | None) -> None:
        self.settings, self.watch, self.trainer, self.answering = settings, watch, trainer, answering
        #: the steps that were the best at the last two checkpoints, the newer first
        self.asked_for: tuple[int, ...] = ()

    def standing(self) -> Standing:
        return standing(measurements(self.trainer.state), self.settings.min_delta)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint that training goes on from knows the best weights too."""
        if measurements(state):
            self.asked_for = (self.standing().step,)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        answers = self.answering(self.trainer.model) if self.answering and self.watch.link.rank == 0 else None
        self.watch.validated(measurements(state), state.max_steps, answers)
        if self.watch.diverged is not None:
            control.should_training_stop, control.should_save = True, False
            return
        found = self.standing()
        if self.settings.keeps_best and not found.waited:
            folder = Path(args.output_dir) / BEST
            save_weights(self.trainer, folder, self.watch.link.rank == 0)
            if self.watch.link.rank == 0:
                upload(folder, self.watch.store, best_at(found.step))
                keep_bests(self.watch.store, found.step, *self.asked_for)
        if self.settings.patience is not None and found.waited >= self.settings.patience:
            # no checkpoint at the last step: training that is resumed there would go on
            control.should_training_stop, control.should_save = True, False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove weights that were the best, and that no checkpoint asks for any more."""
        if self.watch.link.rank == 0 and measurements(state):
            self.asked_for = (self.standing().step, *self.asked_for[:1])
            keep_bests(self.watch.store, *self.asked_for)


def best_weights(store: Store, step: int) -> Path:
    """A local directory with the weights that were best, at `step`."""
    return store.fetch(best_at(step))


def save_weights(trainer: Any, folder: Path, writes: bool) -> None:
    """Weights and tokenizer in `folder`; every rank takes part, for ZeRO-3 gathers the weights."""
    trainer.save_model(str(folder))
    if writes:
        for name in ("training_args.bin", "README.md"):  # a pickle, and a card that says nothing of this run
            (folder / name).unlink(missing_ok=True)
