"""What of a faulty component holds by itself: the references and parts in it are checked all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from tilth.config import Component, Ref, frozen, leaves


def sound(cls: type[Component], data: Any, path: str) -> Iterator[tuple[str, Component | Ref]]:
    """Components and references of raw `data`, meant for a `cls`, with their dotted paths; none that is faulty."""
    if not isinstance(data, Mapping):
        return
    try:
        yield path, cls.model_validate(data)
    except ValidationError:
        target = _target(cls, data.get("kind") if cls.family else None)
        for name, value in data.items():
            field = target.model_fields.get(str(name)) if target is not None else None
            if field is not None:
                yield from _of_field(field, value, f"{path}.{name}")


def _of_field(field: FieldInfo, value: Any, path: str) -> Iterator[tuple[str, Component | Ref]]:
    """The same of one field's value: all of it where it holds, else what lies in it."""
    written: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    strict = None if component_in(field.annotation) else ConfigDict(strict=True)
    try:
        held = TypeAdapter[Any](written, config=strict).validate_python(frozen(value))
    except ValidationError:
        if (inner := component_in(field.annotation)) is not None:
            for where, item in _items(field.annotation, value, path):
                yield from sound(inner, item, where)
    else:
        yield from ((where, item) for where, item in leaves(held, path) if isinstance(item, Component | Ref))


def _items(annotation: Any, value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The raw components in the value of a field that holds one, several or several by name."""
    if isinstance(value, list | tuple):
        yield from ((f"{path}.{index}", item) for index, item in enumerate(value))
    elif isinstance(value, Mapping) and get_origin(annotation) is dict:
        yield from ((f"{path}.{name}", item) for name, item in value.items())
    else:
        yield path, value


def _target(cls: type[Component], kind: Any) -> type[Component] | None:
    """The class that would be built; None where `kind` names none."""
    try:
        return cls.class_of(kind)
    except PydanticCustomError:
        return None


def component_in(annotation: Any) -> type[Component] | None:
    """The component that a field with this annotation holds, alone or among others."""
    if isinstance(annotation, type) and issubclass(annotation, Component):
        return annotation
    return next((found for arg in get_args(annotation) if (found := component_in(arg))), None)
