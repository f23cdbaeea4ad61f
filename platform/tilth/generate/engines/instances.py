"""A value that a JSON schema admits, made up from a random number generator and some words."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any] | bool
# deeper than this, what is optional is left out and arrays are as short as they may be: recursive schemas end
_DEEP = 4
_FORMATS = {
    "date": "2024-02-29",
    "time": "12:00:00Z",
    "date-time": "2024-02-29T12:00:00Z",
    "email": "a@example.org",
    "uri": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class Instances:
    """Makes values for one schema; the random numbers decide which. `pattern` and `not` are not looked at."""

    def __init__(self, schema: Schema, rng: random.Random, words: Sequence[str]) -> None:
        self.root, self.rng, self.words = schema, rng, words

    def value(self) -> Any:
        """A value; RecursionError where the schema admits none that ends."""
        return self._of(self.root, 0)

    def _of(self, schema: Schema, depth: int) -> Any:
        if isinstance(schema, bool):
            return None
        if "$ref" in schema:
            return self._of({**self._at(schema["$ref"]), **_without(schema, "$ref")}, depth + 1)
        for key in ("anyOf", "oneOf"):
            if options := schema.get(key):
                # the last option of a recursive schema is as a rule the one that ends it
                option = options[-1] if depth > _DEEP else self.rng.choice(options)
                return self._of(_both(_without(schema, key), option), depth + 1)
        if "allOf" in schema:
            merged: Schema = _without(schema, "allOf")
            for part in schema["allOf"]:
                merged = _both(merged, self._at(part["$ref"]) if "$ref" in part else part)
            return self._of(merged, depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self.rng.choice(list(schema["enum"]))
        return self._typed(self._type(schema), schema, depth)

    def _at(self, pointer: str) -> Any:
        """What a reference within the schema points to."""
        found: Any = self.root
        for part in filter(None, pointer.removeprefix("#").split("/")):
            name = part.replace("~1", "/").replace("~0", "~")
            found = found[int(name)] if isinstance(found, list) else found[name]
        return found

    def _type(self, schema: Mapping[str, Any]) -> str:
        named = schema.get("type")
        if named is not None:
            return str(named if isinstance(named, str) else self.rng.choice(list(named)))
        clues = {"properties": "object", "required": "object", "items": "array", "prefixItems": "array"}
        numeric = {"minimum": "number", "maximum": "number"}
        return next((kind for key, kind in {**clues, **numeric}.items() if key in schema), "string")

    def _typed(self, kind: str, schema: Mapping[str, Any], depth: int) -> Any:
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind in ("integer", "number"):
            return self._number(schema, kind == "integer")
        if kind == "string":
            return self._string(schema)
        return self.rng.random() < 0.5 if kind == "boolean" else None

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), list(schema.get("required", ()))
        names = required if depth > _DEEP else [*properties, *(name for name in required if name not in properties)]
        made = {name: self._of(properties.get(name, {}), depth + 1) for name in names}
        extra = schema.get("additionalProperties", {})
        while len(made) < schema.get("minProperties", 0):
            made[f"{self.rng.choice(self.words)}{len(made)}"] = self._of(extra, depth + 1)
        return made

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        first = [self._of(item, depth + 1) for item in schema.get("prefixItems", ())]
        least = max(schema.get("minItems", 0 if depth > _DEEP else 1), len(first))
        most = min(schema.get("maxItems", least + 2), least + 2)
        if schema.get("items") is False or depth > _DEEP:
            most = least
        made = first
        for _ in range(10 * most):
            if len(made) >= self.rng.randint(least, max(least, most)):
                break
            item = self._of(schema.get("items", {}), depth + 1)
            if not (schema.get("uniqueItems") and item in made):
                made.append(item)
        return made

    def _number(self, schema: Mapping[str, Any], whole: bool) -> float | int:
        step = schema.get("multipleOf", 1 if whole else 0.1)
        low, high = schema.get("minimum"), schema.get("maximum")
        if "exclusiveMinimum" in schema:
            low = schema["exclusiveMinimum"] + step / 2
        if "exclusiveMaximum" in schema:
            high = schema["exclusiveMaximum"] - step / 2
        if low is None:
            low = 0 if high is None else high - 10 * step
        high = low + 10 * step if high is None else high
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if first > last:  # no multiple lies between: the bounds themselves may be taken
            return low
        count = self.rng.randint(first, last)
        return int(count * step) if whole else round(count * step, 9)

    def _string(self, schema: Mapping[str, Any]) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        least, most = schema.get("minLength", 1), schema.get("maxLength")
        text = " ".join(self.rng.choices(self.words, k=self.rng.randint(3, 12)))
        while len(text) < least:
            text += " " + self.rng.choice(self.words)
        return text if most is None else text[:most]


def _without(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}


def _both(one: Schema, other: Schema) -> Schema:
    """What both ask for, where they do not contradict each other."""
    if isinstance(one, bool) or isinstance(other, bool):
        return other if isinstance(one, bool) else one
    merged = {**one, **other}
    if "properties" in one and "properties" in other:
        merged["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        merged["required"] = list(dict.fromkeys([*one["required"], *other["required"]]))
    return merged
