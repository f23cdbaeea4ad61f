"""Where a run's figures are told while it goes on, beside its own trace: TensorBoard's files under the stage, and the
metrics of a Ray cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback

from tilth.storage import Store
from tilth.train.checkpoint import upload

FOLDER = "tensorboard"


class Scalars:
    """Figures by step in TensorBoard's files; of a resumed run what came after its checkpoint is taken back."""

    def __init__(self, store: Store, scratch: Path, step: int) -> None:
        self.store = store
        self.folder = Path(store.path(FOLDER)) if store.is_local else scratch / FOLDER
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def write(self, step: int, figures: Mapping[str, Any], group: str = "train") -> None:
        """Those of the figures that are numbers."""
        for name, value in figures.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Put all of it on storage."""
        self.writer.close()
        if not self.store.is_local:
            upload(self.folder, self.store, FOLDER)


class RayMetrics(TrainerCallback):  # type: ignore[misc]
    """Every logged figure of rank 0 as a gauge of Ray, which its nodes serve to Prometheus: `tilth_loss`,
    `tilth_eval_loss`, `tilth_learning_rate` and so on, by stage."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.gauges: dict[str, Any] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        from ray.util.metrics import Gauge

        for name, value in (logs or {}).items() if state.is_world_process_zero else ():
            if isinstance(value, int | float):
                if name not in self.gauges:
                    self.gauges[name] = Gauge(f"tilth_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}", tag_keys=("stage",))
                self.gauges[name].set(float(value), {"stage": self.stage})


class TensorBoard(TrainerCallback):  # type: ignore[misc]
    """Every logged figure as a scalar of rank 0."""

    def __init__(self, store: Store, scratch: Path) -> None:
        self.store, self.scratch = store, scratch
        self.scalars: Scalars | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.scalars = Scalars(self.store, self.scratch, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.scalars is None:
            return
        held_out = {name.removeprefix("eval_"): value for name, value in (logs or {}).items() if name[:5] == "eval_"}
        learnt = {name: value for name, value in (logs or {}).items() if name[:5] != "eval_"}
        self.scalars.write(state.global_step, learnt)
        self.scalars.write(state.global_step, held_out, "validation")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.scalars is not None:
            self.scalars.close()
