"""Components: one object from YAML and from Python, strict, with an identity apart from how it is run."""

from __future__ import annotations

import importlib
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from tilth.config import (
    EXECUTION,
    Component,
    DataFiles,
    DatasetRef,
    ModelName,
    ModelRef,
    Ref,
    digest,
    dump,
    identity,
)


class Tool(Component, family="tool"):
    """A family of our own."""


class Hammer(Tool):
    weight: float = Field(1.0, gt=0, description="kg")


class Saw(Tool):
    teeth: int = Field(24, description="count")
    spare: Tool | None = Field(None, description="another")


class Box(Component):
    """Everything a config may hold."""

    tools: tuple[Tool, ...] = Field((), description="in order")
    named: dict[str, Tool] = Field(default_factory=dict, description="by name")
    rows: DatasetRef | None = Field(None, description="a dataset")
    model: ModelRef = Field("org/base", description="a model")
    files: DataFiles | None = Field(None, description="files")
    mode: Literal["fast", "slow"] = Field("fast", description="how")
    workers: int = Field(1, description="how many", json_schema_extra=EXECUTION)
    devices: int = Field(1, description="how many", json_schema_extra={"execution": True, "unit": "GPU"})


HAMMER, SAW = "test_config:Hammer", "test_config:Saw"
PLAIN = {
    "tools": [{"kind": HAMMER, "weight": 2}, {"kind": SAW, "spare": {"kind": HAMMER}}],
    "named": {"big": {"kind": SAW, "teeth": 30}},
    "rows": "@data",
}


def content(value):
    return f"content of {value}"


def test_plain_data_and_python_build_the_same_object():
    built = Box(tools=(Hammer(weight=2), Saw(spare=Hammer())), named={"big": Saw(teeth=30)}, rows="@data")
    assert Box.model_validate(PLAIN) == built
    assert Box.model_validate(dump(built)) == built
    assert isinstance(Box.model_validate(PLAIN).tools[1], Saw)


def test_an_int_is_a_float_and_nothing_else_is_anything_else():
    assert Hammer(weight=2) == Hammer(weight=2.0)
    for wrong in ("2", True, None):
        with pytest.raises(ValidationError):
            Hammer(weight=wrong)
    for wrong in (24.0, "24", True):
        with pytest.raises(ValidationError):
            Saw(teeth=wrong)


def test_a_config_cannot_be_changed_nor_take_unknown_fields():
    with pytest.raises(ValidationError):
        Hammer().weight = 3.0
    with pytest.raises(ValidationError, match="heft"):
        Hammer(heft=1)


def test_a_component_is_not_built_from_another_familys_kind():
    for kind in ("tilth.augment.filters:Length", "json:loads", "no_such_module:X", "test_config:Nothing", ":", 7, None):
        with pytest.raises(ValidationError):
            Box(tools=({"kind": kind},))
    with pytest.raises(ValidationError):
        Hammer.model_validate({"kind": SAW})
    assert Hammer.model_validate({"kind": HAMMER}) == Hammer()


def test_references_and_children_are_found_with_their_paths():
    box = Box.model_validate({**PLAIN, "model": "@base"})
    assert {path: (str(ref), ref.stage, ref.wants) for path, ref in box.refs()} == {
        "rows": ("@data", "data", "dataset"),
        "model": ("@base", "base", "model"),
    }
    assert [path for path, _ in box.children()] == ["tools.0", "tools.1", "tools.1.spare", "named.big"]
    for wrong in ("data", "@"):
        with pytest.raises(ValidationError, match="must name a stage"):
            Box(rows=wrong)


def test_a_model_name_is_no_reference_also_when_it_is_the_default():
    assert isinstance(Box().model, ModelName)
    assert not isinstance(Box().model, Ref)
    with pytest.raises(ValidationError, match="must be a hub name"):
        Box(model=" ")


def test_identity_holds_contents_and_leaves_out_execution():
    found = identity(Box(files="data/a.csv", workers=8, devices=4), content)
    assert found["files"] == "content of data/a.csv"
    assert found["model"] == "content of org/base"
    assert not {"workers", "devices"} & found.keys()


def test_identity_is_equal_for_equal_results_only():
    def mark(**fields):
        return digest(identity(Box(**fields), content))

    base = mark(tools=(Hammer(),), named={"a": Saw(), "b": Hammer()})
    assert mark(tools=(Hammer(weight=1),), named={"b": Hammer(), "a": Saw()}, workers=9, devices=2) == base
    assert mark(tools=(Hammer(weight=2),), named={"a": Saw(), "b": Hammer()}) != base
    assert mark(tools=(Saw(),)) != mark(tools=(Hammer(),))
    assert mark(tools=(Saw(), Hammer())) != mark(tools=(Hammer(), Saw()))


def test_a_path_is_not_part_of_the_identity():
    def same(_):
        return "c0ffee"

    assert identity(Box(files="/a/x.csv", model="/m/1"), same) == identity(Box(files="s3://b/y.csv", model="o/m"), same)


def test_the_version_of_our_code_and_the_source_of_yours_count():
    from tilth.augment.filters import Length

    assert identity(Length(), content)["version"] == Length.version
    assert isinstance(identity(Hammer(), content)["version"], str)


def test_of_a_component_of_yours_all_that_it_inherits_counts(tmp_path, monkeypatch):
    (tmp_path / "my_base.py").write_text("from tilth.augment.eda import Eda\n\n\nclass Base(Eda):\n    pass\n")
    (tmp_path / "my_mixin.py").write_text("class Mixin:\n    pass\n")
    (tmp_path / "my_own.py").write_text(
        "from my_base import Base\nfrom my_mixin import Mixin\n\n\nclass Own(Base, Mixin):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from tilth.augment.eda import Eda

    own = importlib.import_module("my_own").Own()

    def version():
        return identity(own, content)["version"]

    first = version()
    assert version() == first
    for name in ("my_own", "my_base", "my_mixin"):
        file = tmp_path / f"{name}.py"
        before = file.read_text()
        file.write_text(f"{before}\n# changed\n")
        assert version() != first, name
        file.write_text(before)
    assert version() == first
    monkeypatch.setattr(Eda, "version", Eda.version + 1)
    assert version() != first, "and the version of what it inherits of ours"


def test_a_kind_has_its_shortest_name():
    from tilth.augment.filters import Length

    assert Length().kind == "length"
    assert Hammer().kind == HAMMER
    assert dump(Hammer()) == {"kind": HAMMER, "weight": 1.0}


def test_a_digest_does_not_know_the_order_of_keys_and_takes_any_text():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})
    assert len(digest("\ud800 é")) == 64
