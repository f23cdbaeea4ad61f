"""A trial in a pack: the stage as it would run alone, whose backbone is asked of the pack.

Everything a Trainer does, order of rows, loss, clipping, optimizer, schedule, validation, checkpoints, it does here
too. Its model's backbone alone is exchanged: in training its forward pass holds until all trials are there, and after
the trial's own backward pass, which ends at the backbone, it holds again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from tilth.data.loading import Pretrained
from tilth.errors import StageError
from tilth.train.masking import IGNORED
from tilth.train.packs.base import Base
from tilth.train.packs.engine import ApartError, refuse_others
from tilth.train.packs.layout import GIVEN, Given
from tilth.train.packs.turns import Turn
from tilth.trials import Judge, Report


@dataclass(frozen=True)
class Forward:
    """Asked of the pack: the backbone's outputs for this micro-batch."""

    given: Given


@dataclass(frozen=True)
class Backward:
    """Asked of the pack: the gradients of this trial's adapter."""


class Stopped(Exception):  # noqa: N818 - no error: the judge ended the trial
    """Raised in a trial that does not go on."""


class Member:
    """What `worker.train` and the Trainer know of the pack that they are in."""

    def __init__(self, name: str, base: Base, judge: Judge, rows: Path, work: Callable[[Member], Any]) -> None:
        self.name, self.base, self.judge, self.rows = name, base, judge, rows
        self.turn = Turn(lambda: work(self))
        self.trainer: Any = None
        self.backbone: Any = None
        self._learnt: Tensor | None = None
        self._told = 0

    def lend(self, key: Hashable, load: Callable[[], Pretrained]) -> Pretrained:
        """The model that `load` loads, on weights that the pack shares."""
        return self.base.lend(key, load)

    def join(self, trainer: Any) -> None:
        """Exchange the backbone of the trainer's model; ApartError where it cannot be shared."""
        whole = trainer.model.get_base_model()
        self.trainer, self.backbone = trainer, whole.base_model
        refuse_others(self.backbone, self.base.first.base_model)
        trainer.company = self
        trainer.add_callback(Reports(self))
        whole.forward = self._scoring(whole.forward)
        self.backbone.forward = self._sharing(self.backbone.forward)

    def backward(self) -> None:
        """Called when the trial's own backward pass is done: from here on its adapter has gradients."""
        self.turn.ask(Backward())
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1 and accelerator.sync_gradients:
            _average([p for p in self.trainer.model.parameters() if p.requires_grad])

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Raises what is raised within; where that was on another worker, StageError with what it says there."""
        try:
            yield
        except Exception as error:
            _of_all_ranks(f"{type(error).__name__}: {error}")
            raise
        for rank, why in enumerate(_of_all_ranks(None)):
            if why is not None:
                raise StageError(f"worker {rank}: {why}")

    def unreduced(self, model: Any) -> AbstractContextManager[None]:
        """Keep DDP from reducing gradients, which the pack's pass makes behind its back: `backward` averages them."""
        found: AbstractContextManager[None] = self.trainer.accelerator.no_sync(model)
        return found

    def report(self, ended: bool = False) -> None:
        """Tell the judge of the step that is done; Stopped where it says so. `ended`: it was the last, come what may.

        Patience may end a trial before the steps that it was to take: it is trained, as one that took all of them.
        """
        line, state = self.trainer.watch.last, self.trainer.state
        if line is None or line["step"] <= self._told:
            return
        self._told = line["step"]
        found = Report(
            self.name, line["step"], line["step"] if ended else state.max_steps, line["loss"], line["tokens"],
            line["seconds"], line.get("validation_loss"),
        )  # fmt: skip
        if not _agreed(self.judge, found):
            raise Stopped

    def _sharing(self, alone: Any) -> Any:
        signature = inspect.signature(alone)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not (self.backbone.training and torch.is_grad_enabled()):
                return alone(*args, **kwargs)
            found = self.turn.ask(Forward(_given(signature.bind(*args, **kwargs))))
            if self._learnt is not None:
                hidden = found["last_hidden_state"][:, :-1][self._learnt][None]
                found, self._learnt = {**found, "last_hidden_state": hidden}, None
            return _outputs(found)

        return forward

    def _scoring(self, scored: Any) -> Any:
        """TRL's fused head scores every place and ignores what is not learnt; here it is given what is learnt alone."""

        def forward(*args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
            training = self.backbone.training and torch.is_grad_enabled()
            if training and kwargs.get("fused_lm_head") and labels is not None:
                learnt = labels[:, 1:] != IGNORED
                if learnt.any():
                    self._learnt = learnt
                    return scored(*args, shift_labels=labels[:, 1:][learnt][None], **kwargs)
            return scored(*args, **({} if labels is None else {"labels": labels}), **kwargs)

        return forward


class Reports(TrainerCallback):  # type: ignore[misc]
    """Reports a step when the next one begins: then it is known what was measured after it."""

    def __init__(self, member: Member) -> None:
        self.member = member

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.member.report()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.member.report(ended=True)


def _given(bound: inspect.BoundArguments) -> Given:
    """The tensors that a backbone was called with, by name; ApartError for one that no pack knows to lay out."""
    named = {**bound.arguments, **bound.arguments.get("kwargs", {})}
    named = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    named.pop("num_items_in_batch", None)  # for the loss, which a trial computes itself
    if other := sorted(set(named) - set(GIVEN)):
        raise ApartError(f"packs: the model is given {', '.join(other)}, which trials cannot share a pass with")
    cache = {**bound.arguments, **bound.arguments.get("kwargs", {})}.get("past_key_values")
    return named if cache is None else {**named, "past_key_values": cache}


def _outputs(found: dict[str, Tensor]) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling

    kind = BaseModelOutputWithPooling if "pooler_output" in found else BaseModelOutputWithPast
    return kind(**found)


def _average(parameters: list[Any]) -> None:
    """Over all workers, as DDP does."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def _of_all_ranks(word: str | None) -> list[str | None]:
    """What each of them says."""
    if not torch.distributed.is_initialized():
        return [word]
    said: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(said, word)
    return said


def _agreed(judge: Judge, report: Report) -> bool:
    """What rank 0's judge says."""
    if not torch.distributed.is_initialized():
        return judge(report)
    said = [judge(report) if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(said)
    return bool(said[0])
