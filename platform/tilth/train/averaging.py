"""An average of the weights over training: what is measured on held-out rows, and what is left.

It is kept in float32, follows from the steps alone and travels with every checkpoint, so that a resumed run leaves
what an uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from tilth.train.config import Averaging
from tilth.train.watch import Watch

AVERAGE = "average.safetensors"


class WeightAverage(TrainerCallback):  # type: ignore[misc]
    """The running average of every weight that is trained; made before training begins."""

    def __init__(self, model: Any, settings: Averaging, watch: Watch) -> None:
        self.model, self.settings, self.watch = model, settings, watch
        self.mean: dict[str, torch.Tensor] = {}
        self.seen = 0

    def _weights(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad or name in self.mean)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step <= self.settings.begin * state.max_steps:
            return
        self.seen += 1
        share = 1 / self.seen if self.settings.decay is None else 1 - self.settings.decay
        for name, parameter in self._weights():
            now = parameter.detach().float()
            if name in self.mean:
                # one that was loaded lies where the weights lay before DeepSpeed moved them
                self.mean[name] = self.mean[name].to(now.device).lerp_(now, share)
            else:
                self.mean[name] = now.clone()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.seen and self.watch.link.rank == 0:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_file(self.mean, folder / AVERAGE, metadata={"seen": str(self.seen)})

    def load(self, folder: Path) -> None:
        """Go on from what `on_save` wrote, if it wrote anything."""
        if not (folder / AVERAGE).is_file():
            return
        devices = {name: parameter.device for name, parameter in self.model.named_parameters()}
        with safe_open(str(folder / AVERAGE), "pt") as file:
            self.seen = int(file.metadata()["seen"])
            self.mean = {name: file.get_tensor(name).to(devices[name]) for name in file.keys()}  # noqa: SIM118

    def apply(self) -> None:
        """Put the average in the place of the weights, as far as there is one."""
        for name, parameter in self._weights():
            if name in self.mean:
                parameter.data.copy_(self.mean[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average in the place of the weights for a while."""
        kept = {name: parameter.detach().clone() for name, parameter in self._weights()}
        self.apply()
        try:
            yield
        finally:
            for name, parameter in self._weights():
                parameter.data.copy_(kept[name])
