"""Small stages for the tests of runs: no data, no models, only artifacts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tilth.config import EXECUTION, DataFiles, DatasetRef
from tilth.recipe import Stage
from tilth.runs import Artifact, Out


class Number(Stage):
    """Leaves a number."""

    produces: ClassVar[str] = "dataset"
    value: int = Field(description="The number.")
    workers: int = Field(1, json_schema_extra=EXECUTION, description="Does not change the result.")
    note: str = Field("", description="Any text.")
    file: DataFiles | None = Field(None, description="A file whose content counts.")

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        out.store.write("value", str(self.value).encode())
        return out.artifact(metrics={"value": self.value})


class Sum(Stage):
    """Adds what others left; can be slow or fail."""

    produces: ClassVar[str] = "dataset"
    left: DatasetRef = Field(description="A number.")
    right: DatasetRef = Field(description="Another.")
    plus: int = Field(0, description="Added as well.")
    seconds: float = Field(0.0, json_schema_extra=EXECUTION, description="Takes so long.")
    fails: bool = Field(False, json_schema_extra=EXECUTION, description="Raises.")

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        out.store.write("started", b"")
        time.sleep(self.seconds)
        if self.fails:
            raise RuntimeError("told to fail")
        values = [int(inputs[ref].store.read("value")) for ref in (self.left, self.right)]
        total = sum(values) + self.plus
        out.store.write("value", str(total).encode())
        return out.artifact(metrics={"value": total})
