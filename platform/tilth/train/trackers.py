"""Where a run's figures are told while it goes on, beside its own trace: TensorBoard's files under the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback

from tilth.storage import Store
from tilth.train.checkpoint import upload

FOLDER = "tensorboard"


class TensorBoard(TrainerCallback):  # type: ignore[misc]
    """Every logged figure as a scalar of rank 0; of a resumed run what came after its checkpoint is taken back."""

    def __init__(self, store: Store, scratch: Path) -> None:
        self.store = store
        self.folder = Path(store.path(FOLDER)) if store.is_local else scratch / FOLDER
        self.writer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            again = state.global_step + 1 if state.global_step else None
            self.writer = SummaryWriter(str(self.folder), purge_step=again)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.writer is None:
            return
        for name, value in (logs or {}).items():
            if isinstance(value, int | float):
                held_out = name.startswith("eval_")
                tag = f"validation/{name.removeprefix('eval_')}" if held_out else f"train/{name}"
                self.writer.add_scalar(tag, value, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.writer is None:
            return
        self.writer.flush()
        if not self.store.is_local:
            upload(self.folder, self.store, FOLDER)
