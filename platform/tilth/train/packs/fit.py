"""Which trials can be trained together, and how many at once; light, for a search asks before anything is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilth import models
from tilth.errors import ModelError
from tilth.nodes import Nodes
from tilth.train.fitting import ROOM
from tilth.train.memory import FLOAT32, GIB, activation_bytes, footprint
from tilth.train.packs.memory import free
from tilth.trials import Packs, sweep
from tilth.weights import in_folder

if TYPE_CHECKING:
    from pathlib import Path

    from tilth.train.config import Scale
    from tilth.train.sft import Sft
    from tilth.weights import Weights

#: how each kind of adapter lies in the shared pass; kinds that lie alike share a pack
KINDS = {
    "lora": "low-rank updates",
    "ia3": "rescaling vectors",
    "prompt_tuning": "virtual tokens",
    "p_tuning": "virtual tokens",
    "prefix_tuning": "prefixes",
}


def packs(stages: Mapping[str, Sft], places: int, room: float | None) -> Packs:
    """Groups of at most `places` trials whose memory fits into `room` bytes; why each of the others is alone.

    `room` None: what of the device's memory is free; infinite: memory is not looked at.
    """
    apart: dict[str, str] = {}
    groups: dict[Hashable, list[str]] = {}
    for name, stage in stages.items():
        if (why := alone(stage)) is not None:
            apart[name] = why
        else:
            groups.setdefault(key(stage), []).append(name)
    together: list[tuple[str, ...]] = []
    at_once: list[int] = []
    for names in groups.values():
        need = None if room == math.inf else Need.of([stages[name] for name in names])
        most = places if need is None else _most(need, places, stages[names[0]].scale, room)
        count = -(-len(names) // most)
        for part in (tuple(names[start::count]) for start in range(count)):
            if len(part) > 1:
                together.append(part)
                at_once.append(most)
            elif need is not None and most < 2 <= places:
                apart[part[0]] = f"two trials need {need.bytes(2) / GIB:.2g} GiB, more than {ROOM:.0%} of what there is"
            elif len(names) > 1:
                apart[part[0]] = f"the other trials of its kind fill packs of {most}"
            else:
                apart[part[0]] = "no other trial has its model, number formats, kind of adapter and workers"
    firsts = [stages[names[0]] for names in together]
    holds = tuple(workers for stage in firsts if on_workers(stage.scale) for workers in stage.at_work)
    return Packs(tuple(together), apart, tuple(at_once), holds)


def _most(need: Need, places: int, scale: Scale, room: float | None) -> int:
    """How many trials fit into `room`, or what is free: swept up, which takes a moment, only where that is little."""
    if room is not None:
        return need.at_once(places, room)
    if (most := need.at_once(places, free(scale, on_workers(scale)))) == places:
        return most
    sweep()
    return need.at_once(places, free(scale, on_workers(scale)))


@dataclass(frozen=True)
class Need:
    """Bytes of the weights that a pack shares, and of what comes with the largest of its trials."""

    weights: float
    each: float

    @staticmethod
    def of(stages: list[Sft]) -> Need | None:
        """None where the model's files do not tell, such as those of a stage that has not run."""
        folder = _at_hand(str(stages[0].model.name))
        shape = None if folder is None else _shape(folder)
        weights = None if folder is None or shape is None else in_folder(folder)
        if shape is None or weights is None:
            return None
        shared = float(weights.parameters * (2 if stages[0].model.dtype == "bfloat16" else FLOAT32))
        return Need(shared, max(_held(stage, weights, shape) - shared for stage in stages))

    def bytes(self, trials: int) -> float:
        return self.weights + trials * self.each

    def at_once(self, places: int, room: float) -> int:
        """As many trials as fit into ROOM of `room` bytes, at most `places` and at least 1."""
        return max(1, int(min(places, (ROOM * room - self.weights) / self.each)))


def _at_hand(model: str) -> Path | None:
    try:
        return models.at_hand(model)
    except ModelError:
        return None


def _shape(folder: Path) -> dict[str, Any] | None:
    """The model's config, of an adapter that of the model below; None where neither is at hand."""
    shape, settings = _read(folder / "config.json"), _read(folder / "adapter_config.json")
    if shape is not None or settings is None:
        return shape
    below = _at_hand(str(settings.get("base_model_name_or_path")))
    return None if below is None else _read(below / "config.json")


def _read(file: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found


def _held(stage: Sft, weights: Weights, shape: Mapping[str, Any]) -> float:
    """Bytes of one trial: as it would hold alone, and its adapter and gradients once more in the shared pass."""
    scale = stage.scale.model_copy(update={"workers": 0, "deepspeed": None})
    batches = scale.batches(stage.optimisation.global_batch)
    held = footprint(weights, stage.model, stage.optimisation, scale)
    virtual = int(getattr(stage.model.peft, "length", 0))  # of a learnt prompt, before every row
    tokens = (batches.micro if batches else 1) * ((stage.pack_length or stage.max_length) + virtual)
    objective = "language_model" if stage.objective == "auto" else stage.objective
    kept = activation_bytes(shape, tokens, stage.optimisation, scale, objective)
    return held.bytes + 2 * FLOAT32 * held.trained + kept


def alone(stage: Sft) -> str | None:
    """Why a trial cannot share a pass with any other; None where it can, as far as its settings tell."""
    return next(_reasons(stage), None)


def _reasons(stage: Sft) -> Iterator[str]:
    peft, optimisation = stage.model.peft, stage.optimisation
    if peft is None:
        yield "all weights are trained, so there is no frozen model to share; take an adapter"
        return
    if peft.kind not in KINDS:
        yield f"{peft.kind} is not packed; {', '.join(KINDS)} are"
    settings: dict[str, Any] = peft.model_dump()
    if settings.get("dropout") and peft.kind == "lora":
        yield f"its dropout of {settings['dropout']:g} is drawn within the shared pass; set model.peft.dropout: 0.0"
    for name, plain in (("variant", "plain"), ("bias", "none")):
        if settings.get(name, plain) != plain:
            yield f"{peft.kind} with {name} {settings[name]} is not packed; set model.peft.{name}: {plain}"
    if peft.moves_base:
        yield f"init {settings['init']} changes the weights that all share; set model.peft.init: zero"
    if optimisation.neftune is not None:
        yield "noise on embeddings (neftune) is drawn within the shared pass; set optimisation.neftune: null"
    if stage.scale.activation_offload:
        yield "activations of a shared pass are not offloaded; set scale.activation_offload: false"
    if stage.scale.gpus and not stage.scale.workers and not _sees_gpu():
        yield "it asks for a GPU, and this process, in which it is to train, sees none; set scale.workers"
    if (zero := stage.scale.zero) and (zero.stage == 3 or zero.offload):
        yield "ZeRO stage 3 and offload divide the model that all share; set scale.deepspeed: null"
    for tracker in set(stage.trackers) - {"tensorboard"}:
        yield f"{tracker} follows one training of a process; leave it out of trackers"


def _sees_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def on_workers(scale: Scale) -> bool:
    """Whether a pack of such trials is trained on Ray Train workers, for this process has not what they ask for."""
    apart = scale.workers > 1 or scale.nodes != Nodes() or (scale.gpus > 0 and not _sees_gpu())
    return scale.workers > 0 and apart


def key(stage: Sft) -> Hashable:
    """What trials of a pack have in common; other rows, ranks, rates and seeds they may have."""
    scale, peft = stage.scale, stage.model.peft
    kind = KINDS.get(peft.kind) if peft else None
    formats = (stage.model.dtype, stage.optimisation.precision)
    where: tuple[Hashable, ...] = (scale.gpus > 0,)
    if on_workers(scale):
        taken = (scale.workers, scale.min_workers, scale.cpus, scale.gpus, scale.max_failures)
        where = (*taken, scale.nodes.model_dump_json())
    return (str(stage.model.name), kind, stage.objective, *formats, *where, scale.gradient_checkpointing)
