"""Augmenters with faults of their own, for the tests of the ledger."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from tilth.augment.base import Augmenter, Sample, Variant, VariantsFunction
from tilth.data.transform import Inputs
from tilth.generate.base import Answer, Generate, Prompt
from tilth.generate.echo import Echo


class Numbered(Augmenter):
    """Two honest variants for each row, from the row's own random numbers; slow if told so."""

    seconds: float = Field(0.0, description="Sleep for each row.")

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        def make(samples: list[Sample]) -> list[list[Variant]]:
            time.sleep(self.seconds * len(samples))
            return [[Variant(f"{s.text} {s.rng.random():.6f} {k}") for k in range(self.variants)] for s in samples]

        return make


class Deadly(Augmenter):
    """Kills its process, or raises, on the rows named."""

    kill: tuple[str, ...] = Field((), description="Row ids that kill the worker.")
    fail: tuple[str, ...] = Field((), description="Row ids that raise.")

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        def make(samples: list[Sample]) -> list[list[str]]:
            for sample in samples:
                if sample.id in self.kill:
                    os.kill(os.getpid(), 9)
                if sample.id in self.fail:
                    raise ValueError(f"cannot read {sample.id}")
            return [[f"{sample.text} again"] for sample in samples]

        return make


def _node() -> str | None:
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else None


class Located(Numbered):
    """Notes the process that made each variant, and the node that it ran on."""

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        make = super().load_variants(inputs)
        return lambda samples: [
            [
                Variant(item.text, meta={"pid": os.getpid(), "node": _node()})
                for item in made
                if isinstance(item, Variant)
            ]
            for made in make(samples)
        ]


class Stillborn(Numbered):
    """Its worker dies while it loads; the file has a line for each time."""

    file: str = Field(description="Where it notes that it began to load.")

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        noted(self.file)
        os._exit(9)


def noted(file: str) -> None:
    with open(file, "a") as handle:
        handle.write(f"{os.getpid()}\n")


class SlowEcho(Echo):
    """Takes its time for each call, of which the file has a line."""

    in_flight: ClassVar[int] = 3
    seconds: float = Field(description="For each call.")
    file: str = Field(description="Where it notes that it was asked.")

    def load(self, inputs: Inputs) -> Generate:
        answer = super().load(inputs)

        def ask(prompts: Sequence[Prompt]) -> list[Answer]:
            noted(self.file)
            time.sleep(self.seconds)
            return answer(prompts)

        return ask
