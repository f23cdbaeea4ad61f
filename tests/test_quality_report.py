"""The report's section on diversity and bias: figures, tables and words from a stage's detail."""

from __future__ import annotations

import json

import pytest

from helpers import finished_stage, write_dataset
from tilth.data.quality import BiasReport, DiversityReport
from tilth.data.schema import generated, original
from tilth.data.transform import Inputs
from tilth.recipe import MEASURED
from tilth.report import quality, write_report
from tilth.report.svg import Pictures
from tilth.runs import Run

ASKED = (
    "Write a poem about the sea",
    "Give me an example of a noun",
    "Write a letter to her",
    "Explain a gay <b>joke</b>",
)


@pytest.fixture(scope="module")
def detail():
    old = [original(f"o{i}", "train", {"text": f"{text} number {i}"}) for i in range(20) for text in ASKED[:2]]
    new = [
        generated(f"m{i}.{n}", "m", 1, None, {"text": f"{t} number {i}"})
        for i in range(20)
        for n, t in enumerate(ASKED)
    ]
    of = {"originals": 400, "synthetic": 800}
    measured = {
        "asked": {"diversity": {"sample": 1000, "seed": 0}, "bias": {"sample": 100, "seed": 7}},
        "diversity": {**DiversityReport().measure(old, new, Inputs()), "of": of},
        "bias": {**BiasReport(max_divergence={"identity": 0.01}).measure(old, new), "of": of},
    }
    assert json.loads(json.dumps(measured)) == measured
    return measured


def test_every_figure_is_in_the_tables(detail):
    lines = {name: rest for name, *rest in quality.diversity(detail["diversity"])}
    assert lines["rows looked at"] == [40, 80]
    assert lines["Vendi score"] == [detail["diversity"][side]["vendi"] for side in ("originals", "synthetic")]
    facets = {line[0]: line for line in quality.bias(detail["bias"])}
    assert facets["gender"][3] == 0.01
    assert facets["topics"][3] is None
    assert facets["gender"][1] == detail["bias"]["facets"]["gender"]["js_bits"]


def test_what_exceeds_its_limit_is_said_and_the_map_is_drawn(detail):
    assert any(line.startswith("bias: gender of the made rows diverge") for line in quality.words(detail))
    drawn = list(quality.pictures_of(Pictures(), detail, "made"))
    assert [picture.title.split(" ")[0] for picture in drawn] == [
        "What",
        "How",
        "Lengths",
        "Topics",
        "Sentiment",
        "Whom",
    ]
    assert "write 40: " in drawn[0].description
    assert "letter 20" in drawn[0].description
    assert "gender: female" in drawn[-1].description


def test_the_section_is_part_of_the_page(tmp_path, detail):
    run = Run(tmp_path / "run")
    artifact = finished_stage(run, "made", "generate")
    artifact.store.write_json(MEASURED, detail)
    write_dataset(artifact.store, [original("a", "train", {"text": "x", "label": None})])
    plain = finished_stage(run, "plain", "augment")
    write_dataset(plain.store, [original("a", "train", {"text": "x", "label": None})])
    run.store.write("recipe.yaml", b"name: demo\nstages: {}\n")
    write_report(run)
    page = run.store.read("report.html").decode()
    assert page.count('id="quality-made"') == 1
    assert 'id="quality-plain"' not in page
    assert "Divergence from the originals" in page
    assert "<b>joke" not in page


def test_one_of_both_is_enough(detail):
    for name in ("diversity", "bias"):
        alone = {"asked": detail["asked"], name: detail[name]}
        assert quality.words(alone)
        assert list(quality.pictures_of(Pictures(), alone, "made"))
    assert quality.words({}) == []


def test_of_how_many_rows_the_figures_are_is_said(detail):
    said = quality.words(detail)
    assert said[0] == "Diversity: 400 of 400 originals beside 800 of 800 made rows, drawn by id with seed 0."
    assert said[1] == "Bias: 100 of 400 originals beside 100 of 800 made rows, drawn by id with seed 7."


def test_a_stage_that_made_nothing_has_no_figures():
    nothing = {"of": {"originals": 2, "synthetic": 0}}
    old = [original("a", "train", {"text": "x"})]
    bias = {**BiasReport().measure(old, []), **nothing}
    empty = {"asked": {"diversity": {"sample": 9, "seed": 0}, "bias": {"sample": 9, "seed": 0}}, "bias": bias}
    assert quality.bias(bias) == quality.diversity(nothing) == []
    assert list(quality.pictures_of(Pictures(), {**empty, "diversity": nothing}, "made")) == []
