"""Several tasks in one Trainer: a mixin that takes each micro-batch apart by task.

Every part goes through the Trainer's own `training_step` and `compute_loss`, so that TRL's and transformers' losses
serve as they are. Where single tasks' gradients are asked for, they are taken from the parameters after each part,
added up task by task over the accumulation, averaged over the workers, and only then made one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from tilth.data.schema import row_rng
from tilth.train import gradients
from tilth.train.conflict import Memory, Unresolved
from tilth.train.masking import IGNORED
from tilth.train.schedule import Plan, TaskSampler, places
from tilth.train.tasks import Tasks
from tilth.train.watch import ROWS, Watch
from tilth.train.weighting import Seen, State

TASKS = "row_tasks"


class TaskMemory(TrainerCallback, ExportableState):  # type: ignore[misc]
    """What weighting and remedy remember, in the state that the Trainer writes into every checkpoint."""

    def __init__(self, weighting: State | None = None, conflict: Memory | None = None) -> None:
        self.weighting: State = weighting or {}
        self.conflict: Memory = conflict or []
        self.sampler: TaskSampler | None = None

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"weighting": self.weighting, "conflict": self.conflict}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.weighting = saved.get("weighting", self.weighting)
        self.conflict = saved.get("conflict", self.conflict)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Which pass it is: accelerate does not tell a sampler that lies under skipped batches of several workers."""
        if self.sampler is not None:
            self.sampler.set_epoch(state.global_step // self.sampler.plan.pass_steps)


@dataclass(frozen=True)
class Part:
    """The rows of one task in a micro-batch. `scale`: what its loss counts for beside the task's weight."""

    task: int
    inputs: dict[str, Any]
    scale: float


@dataclass
class TaskRun:
    """The tasks of one training run, and what the step at hand has shown of them so far."""

    config: Tasks
    names: tuple[str, ...]
    sampler: TaskSampler
    seed: int
    memory: TaskMemory
    part: Part | None = None
    totals: Tensor = field(default_factory=lambda: torch.zeros(0))
    #: the gradients taken in this step (tasks, parameters), 0 for a task that this worker did not see
    taken: Tensor | None = None

    @staticmethod
    def of(config: Tasks, rows: Any, batch: int, steps: int, seed: int) -> TaskRun:
        """The run over a dataset with a column `task`; `steps` optimizer steps of `batch` rows in all."""
        index = places(rows["task"])
        sizes = {task: len(members) for task, members in index.items()}
        plan = Plan(config.sampling, sizes, batch, steps, -(-len(rows) // batch), seed)
        names = tuple(index)
        remedy = config.conflict or Unresolved()
        memory = TaskMemory(config.weighting.start(names), remedy.start(len(names)))
        memory.sampler = TaskSampler(plan, index)
        run = TaskRun(config, names, memory.sampler, seed, memory)
        run.begin()
        return run

    def begin(self) -> None:
        """Forget the step before. `totals` (tasks, 3): summed loss, loss items, rows."""
        self.totals = torch.zeros(len(self.names), 3, dtype=torch.float64)
        self.taken = None  # made anew: what is trained may grow, and a remedy may have handed on a part of it

    def weight(self, task: int) -> float:
        return self.memory.weighting["weights"][self.names[task]]

    def note(self, task: int, loss: float, items: int, rows: int) -> None:
        self.totals[task] += torch.tensor([loss, items, rows], dtype=torch.float64)

    def take(self, task: int, parameters: Sequence[Any]) -> None:
        """Move the gradients out of the parameters to those of `task`."""
        sizes = [parameter.numel() for parameter in parameters]
        if self.taken is None:
            self.taken = torch.zeros(len(self.names), sum(sizes), device=parameters[0].device)
        for parameter, place in zip(parameters, self.taken[task].split(sizes), strict=True):
            if parameter.grad is not None:
                place += parameter.grad.reshape(-1)
                parameter.grad = None


class MultiTask:
    """Mixed into a transformers Trainer; without `tasks` it changes nothing."""

    tasks: TaskRun | None = None
    watch: Watch
    # the Trainer's own
    accelerator: Any
    model: Any
    state: Any
    _loss_shifts_labels: bool

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.tasks is None:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        return self.tasks.sampler

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """The loss of a micro-batch, its gradients added to the parameters, or to those of its tasks."""
        if (run := self.tasks) is None:
            return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        closes = self.accelerator.sync_gradients
        parts = self._parts(run, inputs, num_items_in_batch is None)
        losses = []
        for number, run.part in enumerate(parts, 1):
            with self._unreduced(model, run.config.separate or number < len(parts)):
                losses.append(super().training_step(model, run.part.inputs, num_items_in_batch))  # type: ignore[misc]
            if run.config.separate:
                run.take(run.part.task, self._trained())
        run.part = None
        if closes:
            self._close(run)
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss of a part, times its task's weight."""
        run = self.tasks
        if run is None or run.part is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        rows = len(next(iter(inputs.values())))
        items = rows if num_items_in_batch is None else self._items(inputs)
        found = super().compute_loss(model, inputs, False, num_items_in_batch)  # type: ignore[misc]
        if run.part.scale:
            whole = rows if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
            run.note(run.part.task, float(found.detach() * whole), items, rows)
        return found * (run.part.scale * run.weight(run.part.task))

    def _trained(self) -> list[Any]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop(TASKS, None)
        return super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _items(self, inputs: dict[str, Any]) -> int:
        """What the Trainer divides a loss by, of these rows."""
        labels = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]
        return int(labels.ne(IGNORED).sum())

    def _parts(self, run: TaskRun, inputs: dict[str, Any], by_row: bool) -> list[Part]:
        """A micro-batch by task. Every worker has as many parts: losses and buffers are gathered in each of them."""
        names = inputs.pop(TASKS)
        members: dict[int, list[int]] = {}
        for row, name in enumerate(names):
            members.setdefault(run.names.index(name), []).append(row)
        parts = [
            Part(task, _rows(inputs, rows), len(rows) / len(names) if by_row else 1.0) for task, rows in members.items()
        ]
        most = len(parts)
        if self.accelerator.num_processes > 1:
            most = int(self.accelerator.gather(torch.tensor([most], device=self.accelerator.device)).max())
        # each with inputs of its own: a step takes row ids and token counts out of them
        return [Part(parts[0].task, _blank(inputs), 0.0) for _ in range(most - len(parts))] + parts

    @contextmanager
    def _unreduced(self, model: Any, apart: bool) -> Iterator[None]:
        """Where `apart`, the gradients of a part stay with this worker, and DeepSpeed does not step after it."""
        if not apart:
            yield
            return
        before = self.accelerator.sync_gradients
        self.accelerator.gradient_state._set_sync_gradients(False)
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        with nullcontext() if deepspeed else self.accelerator.no_sync(model):
            yield
        self.accelerator.gradient_state._set_sync_gradients(before)

    def _close(self, run: TaskRun) -> None:
        """End a step: what all workers saw, the gradients made one, weights and remedy for the next step."""
        totals = self.accelerator.reduce(run.totals.to(self.accelerator.device), "sum").cpu()
        shares = totals[:, 1] / totals[:, 1].sum().clamp(min=1)
        self.watch.extra = {"tasks": _told(run, totals)}
        norms: dict[int, float] = {}
        if run.config.separate:
            assert run.taken is not None, "a step has parts"
            taken = run.taken if self.accelerator.num_processes == 1 else self.accelerator.reduce(run.taken, "mean")
            dots = gradients.products(taken)
            self.watch.extra["conflict"] = {"tasks": list(run.names), "cosines": _cosines(dots)}
            norms = {task: float(norm / shares[task]) for task, norm in enumerate(gradients.norms(dots)) if norm > 0}
            # a gradient that is no number is left for the Watch to stop at
            sound = bool(torch.isfinite(dots.diagonal()).all())
            _give(_combined(run, taken, self.state.global_step) if sound else taken.sum(dim=0), self._trained())
        if torch.isfinite(totals).all():
            seen = {
                run.names[task]: Seen(loss / items, norms.get(task))
                for task, (loss, items, _) in enumerate(totals.tolist())
                if items
            }
            run.memory.weighting = run.config.weighting.update(run.memory.weighting, seen)
        run.begin()


def _rows(inputs: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """These rows of a batch of tensors and lists."""
    return {
        key: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
        for key, value in inputs.items()
    }  # fmt: skip


def _blank(inputs: dict[str, Any]) -> dict[str, Any]:
    """A row for a worker that has no part left when others have: it is not seen, and its loss counts for nothing."""
    return {**_rows(inputs, [0]), ROWS: [""]}


def _combined(run: TaskRun, taken: Tensor, step: int) -> Tensor:
    """One gradient (parameters,) of all tasks'."""
    remedy = run.config.conflict or Unresolved()
    rng = row_rng(run.seed, str(step), "order of conflicts")
    combined, run.memory.conflict = remedy.combine(taken, rng, run.memory.conflict)
    return combined


def _give(combined: Tensor, parameters: Sequence[Any]) -> None:
    for parameter, flat in zip(parameters, combined.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = flat.view_as(parameter).to(parameter.dtype)


def _cosines(dots: Tensor) -> list[list[float | None]]:
    """The matrix as the trace holds it, null where a task was not seen."""
    seen = (dots.diagonal() > 0).tolist()
    return [
        [round(value, 4) if seen[i] and seen[j] else None for j, value in enumerate(row)]
        for i, row in enumerate(gradients.cosines(dots).tolist())
    ]


def _told(run: TaskRun, totals: Tensor) -> dict[str, dict[str, float]]:
    """A line of the trace for each task that the step saw."""
    return {
        run.names[task]: {
            "rows": int(rows),
            "items": int(items),
            "loss": round(loss / items, 6) if items else 0.0,
            "weight": round(run.weight(task), 6),
        }
        for task, (loss, items, rows) in enumerate(totals.tolist())
        if rows
    }
