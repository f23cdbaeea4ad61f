"""How large a model is, by the headers of its safetensors: no weight is read and nothing is fetched."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tilth import hub, models
from tilth.errors import ModelError

#: no header of a real model comes near it; a damaged file may claim any length
_LONGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class Weights:
    """The size of a model: its parameters, their bytes as they are stored, and the shape of each tensor by name."""

    parameters: int
    stored: int
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @property
    def width(self) -> float:
        """Stored bytes of a parameter."""
        return self.stored / max(1, self.parameters)


#: What a name, directory or "@stage" comes to, None where that is not known.
Sized = Callable[[str], Weights | None]


def weights(model: str) -> Weights | None:
    """Of a directory, of what was fetched before, or as the hub says of a name; None where none of them tells."""
    try:
        folder = models.at_hand(model)
    except ModelError:
        return None
    return in_folder(folder) if folder is not None else _by_the_hub(model)


def in_folder(folder: Path) -> Weights | None:
    """Of a local directory; of an adapter, with the model that it stands on. None without whole safetensors."""
    if (settings := folder / "adapter_config.json").is_file():
        below = weights(str(json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")))
        return None if below is None else _sum([below, *_headers([folder / "adapter_model.safetensors"])])
    found = list(_headers(_loaded(folder)))
    return _sum(found) if found else None


def _loaded(folder: Path) -> list[Path]:
    """The weights that transformers takes from a directory: one file, else what its index names; else all there are.

    Others beside them are the same weights for another program, such as consolidated.safetensors.
    """
    if (one := folder / "model.safetensors").is_file():
        return [one]
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return sorted(folder.glob("*.safetensors"))


def _headers(files: list[Path]) -> Iterator[Weights]:
    return (one for file in files if (one := _header(file)) is not None)


def _header(file: Path) -> Weights | None:
    """What one file says of itself; None where it is damaged."""
    try:
        with open(file, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(min(length, _LONGEST_HEADER)))
        tensors = {name: item for name, item in dict(header).items() if name != "__metadata__"}
        shapes = {name: tuple(item["shape"]) for name, item in tensors.items()}
        stored = sum(stop - start for start, stop in (item["data_offsets"] for item in tensors.values()))
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    return Weights(sum(map(math.prod, shapes.values())), stored, shapes) if shapes else None


def _sum(found: list[Weights]) -> Weights:
    shapes = {name: shape for one in found for name, shape in one.shapes.items()}
    return Weights(sum(one.parameters for one in found), sum(one.stored for one in found), shapes)


def _by_the_hub(model: str) -> Weights | None:
    by_dtype = hub.ask(model, None).parameters
    if not by_dtype:
        return None
    widths = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}
    return Weights(sum(by_dtype.values()), sum(widths.get(name, 1) * n for name, n in by_dtype.items()))
