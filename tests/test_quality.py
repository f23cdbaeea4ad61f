"""Diversity and bias of what a stage made: measured once, held to limits, and no row is made again for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tilth
from tilth.augment.base import Augmenter, Sample, VariantsFunction
from tilth.data.dataset import Dataset
from tilth.data.transform import Inputs
from tilth.errors import QuarantineError, RecipeError, StageError
from tilth.recipe import MEASURED
from tilth.report import write_report

MADE: list[str] = []
ROWS = [{"text": f"He asks where card number {i} is", "label": "card" if i % 4 else "cash"} for i in range(40)]


class Wives(Augmenter):
    """Says of every row that a woman asks, and remembers which rows it was given."""

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        def make(samples: list[Sample]) -> Sequence[Sequence[str]]:
            MADE.extend(sample.id for sample in samples)
            return [[f"{sample.text.replace('He', 'She')}, says my wife"] for sample in samples]

        return make


def recipe(folder: Path, rows: Sequence[dict[str, Any]] = ROWS, **fields: Any) -> dict[str, Any]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl")}
    more = {"kind": "augment", "data": "@data", "steps": [{"kind": "test_quality:Wives"}], "resources": {"workers": 0}}
    data = {"kind": "data", "row": "labelled", "source": source}
    return {"name": "measured", "stages": {"data": data, "more": {**more, **fields}}}


def bias_only(**fields: Any) -> dict[str, Any]:
    return {"diversity": None, "bias": fields}


def measured(out: Path, stage: str = "more") -> dict[str, Any]:
    (file,) = out.glob(f"stages/{stage}/*/{MEASURED}")
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_run_holds_the_figures_of_originals_beside_made_rows(tmp_path):
    done = tilth.run(recipe(tmp_path, quality=bias_only()), tmp_path / "run")
    found = measured(tmp_path / "run")
    rows = list(Dataset.open(done["more"]).rows())
    sides = [Counter(row["label"] for row in rows if (row["via"] is not None) == made) for made in (False, True)]
    assert found["bias"]["of"] == found["bias"]["rows"] == {"originals": 40, "synthetic": 40}
    assert {name: counts for name, *counts in found["bias"]["facets"]["labels"]["values"]} == {
        label: [sides[0][label], sides[1][label]] for label in ("card", "cash")
    }
    gender = {name: counts for name, *counts in found["bias"]["facets"]["gender"]["values"]}
    assert gender == {"male": [40, 0], "female": [0, 40]}
    assert found["bias"]["facets"]["gender"]["js_bits"] == 1.0
    assert "diversity" not in found


def test_a_limit_fails_the_stage_and_a_higher_one_makes_nothing_again(tmp_path):
    MADE.clear()
    out = tmp_path / "run"
    strict = recipe(tmp_path, quality=bias_only(max_divergence={"gender": 0.5}))
    with pytest.raises(StageError) as failed:
        tilth.run(strict, out)
    message = str(failed.value)
    assert "gender of the made rows diverge by 1.000 bits from the originals, more than 0.5" in message
    assert "raise quality.bias.max_divergence" in message
    assert MEASURED in message
    assert len(MADE) == 40
    (folder,) = out.glob("stages/more/*")
    assert not (folder / "artifact.json").exists()
    done = tilth.run(recipe(tmp_path, quality=bias_only(max_divergence={"gender": 1.0})), out)
    assert len(Dataset.open(done["more"])) == 80
    assert done["more"].store.at_url("").rstrip("/").endswith(folder.name)
    with pytest.raises(StageError, match=r"more than 0\.5"):  # a finished stage is held to it too
        tilth.run(strict, out)
    assert len(MADE) == 40


def test_other_figures_are_taken_of_the_same_rows_and_the_same_ones_are_not_taken_again(tmp_path):
    MADE.clear()
    out = tmp_path / "run"
    tilth.run(recipe(tmp_path), out)
    assert not list(out.glob(f"stages/more/*/{MEASURED}"))
    tilth.run(recipe(tmp_path, quality=bias_only()), out)
    (file,) = out.glob(f"stages/more/*/{MEASURED}")
    first, written = measured(out), file.stat().st_mtime_ns
    tilth.run(recipe(tmp_path, quality=bias_only()), out)
    assert file.stat().st_mtime_ns == written
    tilth.run(recipe(tmp_path, quality=bias_only(topics=3, seed=5)), out)
    assert measured(out)["asked"]["bias"]["seed"] == 5
    assert measured(out)["bias"]["facets"]["gender"]["values"] == first["bias"]["facets"]["gender"]["values"]
    assert len(MADE) == 40


def test_a_sample_is_drawn_by_id_and_the_figures_say_of_how_many(tmp_path):
    rows = [{"text": f"He asks for card {i}", "label": "card"} for i in range(150)]
    tilth.run(recipe(tmp_path, rows, quality=bias_only(sample=100)), tmp_path / "a")
    tilth.run(recipe(tmp_path, rows, unit_rows=7, quality=bias_only(sample=100)), tmp_path / "b")
    found = measured(tmp_path / "a")
    assert found["bias"]["rows"] == {"originals": 100, "synthetic": 100}
    assert found["bias"]["of"] == {"originals": 150, "synthetic": 150}
    assert (found["asked"]["bias"]["sample"], found["asked"]["bias"]["seed"]) == (100, 0)
    assert measured(tmp_path / "b") == found


def templated(folder: Path, **bias: Any) -> dict[str, Any]:
    method = {"kind": "templates", "templates": [{"name": "ask", "jinja": "{{text}} says she ||| {{label}}"}]}
    made = {"kind": "generate", "data": "@data", "method": method, "quality": bias_only(**bias)}
    asked = recipe(folder)
    return {**asked, "stages": {"data": asked["stages"]["data"], "more": {**made, "resources": {"workers": 0}}}}


def test_generated_rows_of_another_type_stand_beside_the_given_ones(tmp_path):
    tilth.run(templated(tmp_path), tmp_path / "run")
    found = measured(tmp_path / "run")["bias"]
    assert found["of"] == {"originals": 40, "synthetic": 40}
    assert dict(map(tuple, ([name, made] for name, _, made in found["facets"]["gender"]["values"]))) == {
        "male": 40,
        "female": 40,
    }
    with pytest.raises(StageError, match=r"gender .* more than 0\.1: 'male' went from 100\.0% to 50\.0%"):
        tilth.run(templated(tmp_path, max_divergence={"identity": 0.1}), tmp_path / "run")
    with pytest.raises(StageError, match=r"max_divergence\.labels: completion rows have no labels"):
        tilth.run(templated(tmp_path, max_divergence={"labels": 0.1}), tmp_path / "other")


def test_a_facet_that_does_not_exist_is_found_before_anything_runs(tmp_path):
    with pytest.raises(RecipeError, match="no facet 'shoes'"):
        tilth.load(templated(tmp_path, max_divergence={"shoes": 0.1}))


@pytest.mark.parametrize("limit", [-0.1, 1.5, "low"])
def test_limits_are_bits_from_0_to_1(limit, tmp_path):
    with pytest.raises(RecipeError, match="max_divergence"):
        tilth.load(recipe(tmp_path, quality=bias_only(max_divergence={"gender": limit})))


def test_the_model_of_figures_is_no_stage(tmp_path):
    asked = recipe(tmp_path, quality={"diversity": {"model": "@sft"}})
    with pytest.raises(RecipeError, match=r"quality\.diversity\.model: @sft is a stage"):
        tilth.load(asked)


def test_texts_of_any_length_and_script_are_measured(tmp_path):
    odd = ["but " * 30_000, "我的卡在哪里?" * 2_000, "🙂" * 50, "\u202eabc\u0301", "a"]
    rows = [{"text": text, "label": "card"} for text in odd]
    tilth.run(recipe(tmp_path, rows, quality={}), tmp_path / "run")
    found = measured(tmp_path / "run")
    assert found["diversity"]["synthetic"]["rows"] == 5
    assert found["bias"]["facets"]["lengths"]["js_bits"] <= 1
    assert 0 < found["diversity"]["synthetic"]["vendi"] <= 5


def test_quarantine_of_a_finished_stage_is_judged_anew(tmp_path):
    picky = [{"kind": "test_quality:Picky"}]
    tilth.run(recipe(tmp_path, steps=picky, max_quarantined=0.5), tmp_path / "run")
    with pytest.raises(QuarantineError, match=r"max_quarantined is 1\.0%"):
        tilth.run(recipe(tmp_path, steps=picky), tmp_path / "run")


class Picky(Augmenter):
    """Cannot work on one of forty rows."""

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        def make(samples: list[Sample]) -> Sequence[Sequence[str]]:
            if any(sample.text.endswith("number 7 is") for sample in samples):
                raise ValueError("seven")
            return [[] for _ in samples]

        return make


def test_the_report_shows_it(tmp_path):
    tilth.run(recipe(tmp_path, quality=bias_only(max_divergence={"lengths": 1.0})), tmp_path / "run")
    write_report(tilth.Run(tmp_path / "run"))
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert 'id="quality-more"' in page
    assert "Bias: 40 of 40 originals beside 40 of 40 made rows, drawn by id with seed 0." in page
