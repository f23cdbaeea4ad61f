"""The shape that an answer must have: JSON of a schema, or one of several texts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# what models like to put around a choice, before and after its full stop
_AROUND = " \t\r\n\"'“”‘’`*"
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)


class ShapeError(ValueError):
    """A text that has not the shape; says why."""


@dataclass(frozen=True)
class Shape:
    """Exactly one of `schema` (JSON Schema, as JSON text, so that a Shape can be hashed) and `choices`."""

    schema: str | None = None
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.schema is None) == (not self.choices):
            raise ValueError("a shape is either a JSON schema or choices")

    @staticmethod
    def of(schema: Mapping[str, Any]) -> Shape:
        """The shape of a JSON schema; jsonschema's SchemaError where it is none."""
        from jsonschema.validators import validator_for

        validator_for(dict(schema)).check_schema(dict(schema))
        return Shape(json.dumps(schema))  # as written: the order of properties is the order of writing

    def read(self, text: str) -> Any:
        """What `text` means; ShapeError where it has not the shape.

        A fence of ``` around JSON is taken off. Of choices that alone counts which the text is but for case, a closing
        full stop, quotes and asterisks.
        """
        if self.choices:
            return self._chosen(text)
        fenced = _FENCE.match(text)
        try:
            value = json.loads(fenced.group(1) if fenced else text)
        except ValueError as error:
            raise ShapeError(f"no JSON: {error}") from error
        fault = next(iter(_validator(self.schema or "").iter_errors(value)), None)
        if fault is not None:
            raise ShapeError(f"{fault.json_path}: {fault.message}")
        return value

    def _chosen(self, text: str) -> str:
        if (said := text.strip()) in self.choices:
            return said
        near = [choice for choice in self.choices if _word(choice) and _word(choice) == _word(said)]
        if len(near) == 1:
            return near[0]
        raise ShapeError(f"{_short(text)} is none of {', '.join(self.choices)}")


def _word(text: str) -> str:
    return text.strip(_AROUND).removesuffix(".").strip(_AROUND).casefold()


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema.validators import validator_for

    body = json.loads(schema)
    return validator_for(body)(body)
