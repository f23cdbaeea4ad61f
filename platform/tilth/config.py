"""Components: frozen, strict configs chosen by `kind`; YAML and Python build the same object.

A *family* is an abstract component (Stage, Source, Transform, …). A field annotated with a family takes
`{kind: x, …}`, where x is a built-in kind (`tilth.kinds`) or `"module:Class"`, or the object itself.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from tilth.errors import Problem
from tilth.kinds import kind_of, load_class

# Field(json_schema_extra=EXECUTION): says how a stage runs, not what it computes; kept out of fingerprints.
EXECUTION: dict[str, Any] = {"execution": True}


class Ref(str):
    """The name of an earlier stage, written "@stage"; `wants` is what that stage must produce."""

    wants: str = "any"

    @property
    def stage(self) -> str:
        return self[1:]


class DatasetRefStr(Ref):
    wants = "dataset"


class ModelRefStr(Ref):
    wants = "model"


class ReportRefStr(Ref):
    wants = "report"


class ModelName(str):
    """A model by hub name or local directory; its content, not its path, is its identity."""


class FunctionName(str):
    """A function of the user's own as "module:function"; the content of its module is its identity."""


class DataPath(str):
    """A path, glob or URI of data files; their content, not their path, is their identity."""


class Content(str):
    """A place outside the recipe that tells by itself what it holds; that, not where it is, is its identity."""

    def content(self) -> str:
        """A hash of what the place holds now."""
        raise TypeError(f"{type(self).__name__} must define content()")


def _dataset_ref(text: str) -> Ref:
    if not text.startswith("@") or len(text) < 2:
        raise PydanticCustomError("ref", 'must name a stage that produces a dataset, written "@stage"')
    return DatasetRefStr(text)


def _report_ref(text: str) -> Ref:
    if not text.startswith("@") or len(text) < 2:
        raise PydanticCustomError("ref", 'must name a stage that leaves a report, written "@stage"')
    return ReportRefStr(text)


def _model(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("model", "must be a hub name, a directory or a stage written @stage")
    return ModelRefStr(text) if text.startswith("@") else ModelName(text)


def _function(text: str) -> str:
    module, colon, name = text.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise PydanticCustomError("function", 'must be a function written "module:function"')
    return FunctionName(text)


DatasetRef = Annotated[str, AfterValidator(_dataset_ref)]
ReportRef = Annotated[str, AfterValidator(_report_ref)]
ModelRef = Annotated[str, AfterValidator(_model)]
FunctionRef = Annotated[str, AfterValidator(_function)]
DataFiles = Annotated[str, Field(min_length=1), AfterValidator(DataPath)]


class Component(BaseModel):
    """Base of every config. Subclass with `family="name"` to open a family of kinds."""

    # defaults are validated too: that is what makes a default model name a ModelName, known by its content
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,
    )

    family: ClassVar[str] = ""
    abstract: ClassVar[bool] = False
    #: Raise it when the same config and input give another result: finished stages are then run again.
    version: ClassVar[int] = 1

    @classmethod
    def __pydantic_init_subclass__(cls, family: str | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.abstract = family is not None
        if family is not None:
            cls.family = family

    def __init_subclass__(cls, family: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

    @property
    def kind(self) -> str:
        """What a recipe writes after `kind:` for this component."""
        return kind_of(self.family, type(self))

    @model_validator(mode="wrap")
    @classmethod
    def _by_kind(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            if cls.abstract:
                raise PydanticCustomError("kind_missing", "needs a kind", {"family": cls.family, "given": value})
            return handler(value)
        fields = {key: frozen(item) for key, item in value.items()}
        if not cls.family:
            return handler(fields)
        target = cls.class_of(fields.pop("kind", None))
        return handler(fields) if target is cls else target.model_validate(fields)

    @classmethod
    def class_of(cls, kind: Any) -> type[Self]:
        """The class to build: `cls` itself, or for a family the class behind `kind`."""
        if not cls.abstract:
            if kind not in (None, kind_of(cls.family, cls)):
                raise PydanticCustomError("kind", "kind {kind} is not {cls}", {"kind": kind, "cls": cls.__name__})
            return cls
        if not isinstance(kind, str):
            raise PydanticCustomError("kind_missing", "needs a kind", {"family": cls.family, "given": kind})
        try:
            target = load_class(cls.family, kind)
        except LookupError as error:
            raise PydanticCustomError(
                "kind_unknown", "{why}", {"why": str(error), "family": cls.family, "given": kind}
            ) from error
        if not issubclass(target, cls):
            raise PydanticCustomError("kind", "{kind} is not a {family}", {"kind": kind, "family": cls.family})
        return target

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # pydantic serialises a field by its declared type; ours hold subclasses, so dump what is really there
        fields = {name: dump(getattr(self, name)) for name in type(self).model_fields}
        return {"kind": self.kind, **fields} if self.family else fields

    def check(self) -> list[Problem]:
        """Faults that no single field can show, in milliseconds and without heavy imports."""
        return []

    def children(self) -> Iterator[tuple[str, Component]]:
        """Every component nested in this one, with its dotted path."""
        for name in type(self).model_fields:
            for path, item in leaves(getattr(self, name), name):
                if isinstance(item, Component):
                    yield path, item
                    yield from ((f"{path}.{inner}", child) for inner, child in item.children())

    def refs(self) -> Iterator[tuple[str, Ref]]:
        """Every "@stage" written anywhere in this component, with its dotted path."""
        for path, _, item in self._values():
            if isinstance(item, Ref):
                yield path, item

    def named_models(self) -> Iterator[tuple[Component, str]]:
        """Every model named anywhere in this component, by name or as "@stage", with the component that names it."""
        for _, owner, item in self._values():
            if isinstance(item, ModelName | ModelRefStr):
                yield owner, item

    def _values(self) -> Iterator[tuple[str, Component, Any]]:
        """Every value that is no component, with its dotted path and the component that it stands in."""
        for owner_path, owner in (("", self), *self.children()):
            for name in type(owner).model_fields:
                for path, item in leaves(getattr(owner, name), name):
                    yield f"{owner_path}.{path}".strip("."), owner, item


def frozen(value: Any) -> Any:
    """Lists become tuples, all the way down: configs are immutable and YAML knows only lists."""
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return value


def dump(value: Any) -> Any:
    """Plain YAML-ready data of a config value."""
    if isinstance(value, Component):
        return value.model_dump()
    if isinstance(value, tuple):
        return [dump(item) for item in value]
    if isinstance(value, Mapping):
        return {key: dump(item) for key, item in value.items()}
    return str(value) if isinstance(value, str) else value


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}.{index}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    else:
        yield path, value


def identity(value: Any, content: Callable[[str], Any]) -> Any:
    """What of `value` decides the result, as plain data: no execution fields, no paths.

    `content` gives the identity of a Ref, ModelName, DataPath, FunctionName or Content (its content's hash).
    """
    if isinstance(value, Ref | ModelName | DataPath | FunctionName | Content):
        return content(value)
    if isinstance(value, Component):
        cls = type(value)
        fields = {
            name: identity(getattr(value, name), content)
            for name, field in cls.model_fields.items()
            if not _is_execution(field)
        }
        return {"kind": value.kind, "version": _code_version(cls), **fields} if value.family else fields
    if isinstance(value, tuple):
        return [identity(item, content) for item in value]
    if isinstance(value, Mapping):
        return {key: identity(item, content) for key, item in sorted(value.items())}
    return value


def _is_execution(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("execution") is True


def _code_version(cls: type[Component]) -> int | str:
    """Our own components count versions by hand; a user's component is its source and that of all it inherits."""
    if cls.__module__.startswith("tilth."):
        return cls.version
    inherited = [base for base in cls.__mro__ if base not in Component.__mro__]
    return digest(list(dict.fromkeys(mark for base in inherited if (mark := _mark(base)))))[:16]


def _mark(cls: type) -> str | None:
    """What tells one state of a class's code from another; None for what comes with Python."""
    module = cls.__module__.partition(".")[0]
    if module in sys.stdlib_module_names and not issubclass(cls, Component):
        return None
    source = None if module == "tilth" else inspect.getsourcefile(cls)
    if source is None:
        return f"{cls.__qualname__} {getattr(cls, 'version', 1)}"
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def digest(value: Any) -> str:
    """SHA-256 (hex, 64 characters) of plain data in canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
