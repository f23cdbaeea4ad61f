"""The report: one well-formed page that loads nothing, hides nothing and runs nothing that a row says."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from helpers import finished_stage, reject, write_dataset
from tilth.data.bootstrap import Interval
from tilth.data.schema import added, generated, original
from tilth.evaluate.scores import Comparison, compared_detail, score
from tilth.report import figures, judging, write_report
from tilth.report.svg import Pictures
from tilth.report.tallies import flows, label_counts
from tilth.report.training import gap, gaps
from tilth.runs import Artifact, Run
from tilth.storage import Store
from tilth.train.held_pairs import JudgedPairs, tell

HOSTILE = "<script>alert('x')</script><img src=https://evil.example/p.png> $\\frac{ & \x07"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Every element with its attributes, text by element, and whether each was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"{tag} is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def data_stages(run: Run) -> None:
    rows = [original(f"a{i}", "train", {"text": f"where is my card {i}", "label": f"l{i % 4}"}) for i in range(20)]
    rows.append(original("evil", "train", {"text": HOSTILE, "label": HOSTILE}))
    write_dataset(finished_stage(run, "data", reused=True).store, rows)
    children = [added(row, "eda", 0, 1, "eda", text=f"{row['text']} please", meta={"cosine": 0.9}) for row in rows]
    dropped = {**added(rows[0], "translate", 0, 1, "opus", text="card"), "reason": f"similarity: {HOSTILE}"}
    dataset = write_dataset(finished_stage(run, "augment", "augment").store, [*rows, *children])
    reject(dataset, [dropped])


def training_stage(run: Run) -> None:
    artifact = finished_stage(run, "sft", "sft", "model", metrics={"train_loss": 0.7})
    lines = [{"step": i, "loss": 3 / i, "learning_rate": 1e-4, "grad_norm": 1.0, "seconds": 0.1} for i in range(1, 40)]
    artifact.store.write("trace.jsonl", "\n".join(map(json.dumps, lines)).encode())


def evaluation_stage(run: Run) -> Artifact:
    rows = [original(f"t{i}", "test", {"text": "x", "label": f"l{i % 3}"}) for i in range(30)]
    for number, row in enumerate(rows):
        row["meta"] = {"prediction": "l0" if number % 7 == 0 else row["label"], "truncated": False}
    detail = dict(score({"augmented": rows})["augmented"].detail)
    detail["intervals"] = {"accuracy": vars(Interval(0.9, 0.8, 0.95)), "f1_macro": vars(Interval(0.88, 0.79, 0.94))}
    gap = compared_detail([Comparison("accuracy", Interval(0.03, -0.01, 0.07), 0.12, "McNemar, exact")])
    verdict = "augmented against originals: not distinguishable"
    return finished_stage(
        run,
        "evaluate",
        "evaluate",
        "report",
        detail={
            "split": "test", "rows": 30, "baseline": "originals", "verdicts": [verdict],
            "models": {"originals": detail, "augmented": detail}, "differences": {"augmented": gap},
        },
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    data_stages(run)
    training_stage(run)
    evaluation_stage(run)
    finished_stage(run, "search", "search", "report", metrics={"best/loss": 0.25})
    run.store.write("recipe.yaml", b"name: demo\ndescription: shows <b>all</b>\nstages: {}\n")
    return run


@pytest.fixture
def page(run: Run) -> Page:
    assert write_report(run) == run.store.at_url("report.html")
    return Page(run.store.read("report.html").decode())


def test_the_page_is_well_formed_with_unique_ids(page: Page):
    assert page.faults == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_and_no_script_runs(page: Page):
    assert not page.all("script")
    assert not page.all("img")
    assert not page.all("link")
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value is not None
                assert value.startswith("#"), (tag, name, value)
    style = " ".join(text for tag, text in page.text if tag == "style")
    assert "@import" not in style
    assert "url(" not in style


def test_links_within_the_page_lead_somewhere(page: Page):
    ids = {attributes.get("id") for _, attributes in page.elements}
    targets = [link["href"] for tag in ("a", "use") for link in page.all(tag)]
    assert targets
    assert all(target and target[1:] in ids for target in targets)


def test_hostile_rows_are_shown_as_text(page: Page):
    shown = " ".join(text for _, text in page.text)
    assert "<script>alert('x')</script>" in shown
    assert "shows <b>all</b>" in shown


def test_every_figure_has_a_title_and_says_what_it_shows(page: Page):
    drawings = page.all("svg")
    assert len(drawings) >= 6
    ids = {attributes.get("id") for _, attributes in page.elements}
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert drawing["aria-labelledby"] is not None
        assert set(drawing["aria-labelledby"].split()) <= ids
    described = [text for tag, text in page.text if tag == "desc"]
    assert len(described) == len(drawings)
    assert any("21 rows of eda: accepted" in text for text in described)


def test_tables_have_captions_and_headers_with_a_scope(page: Page):
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))


def test_added_words_are_marked_and_drops_give_their_reason(page: Page):
    assert ("ins", "please") in page.text
    assert any(tag == "span" and text.startswith("dropped: similarity") for tag, text in page.text)


def test_stages_results_and_metrics_of_other_stages_are_told(page: Page):
    shown = [text for _, text in page.text]
    for text in ("augmented against originals: not distinguishable", "best/loss", "0.25", "reused", "demo"):
        assert text in shown


def test_a_run_that_stopped_early_still_gets_its_report(tmp_path: Path):
    run = Run(tmp_path)
    plan = [{"stage": "data", "fingerprint": "1" * 64, "reused": False, "why": "it has not run here yet"}]
    run.store.write_json("plan.json", plan)
    write_report(run)
    page = Page(run.store.read("report.html").decode())
    assert page.faults == []
    assert "unfinished" in [text for _, text in page.text]


def test_the_same_run_gives_the_same_report(run: Run):
    write_report(run)
    first = run.store.read("report.html")
    write_report(run)
    assert run.store.read("report.html") == first


def test_datasets_without_labels_or_rows_are_told_too(tmp_path: Path):
    run = Run(tmp_path)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [original("c1", "train", {"messages": turns})]
    child = added(
        rows[0], "respell", 0, 1, None, messages=[*turns[:1], {"role": "assistant", "content": "hello there"}]
    )
    write_dataset(finished_stage(run, "chat").store, [*rows, child], "chat")
    write_dataset(finished_stage(run, "empty").store, [], "text")
    write_report(run)
    page = Page(run.store.read("report.html").decode())
    assert ("ins", "there") in page.text


def test_rows_that_a_model_made_of_nothing_are_no_originals(tmp_path: Path) -> None:
    rows = [original("a", "train", {"text": "x", "label": "pay"})]
    rows.append(generated("grid-000.00000.0", "grid", 1, "m", {"text": "y", "label": "pay"}))
    assert label_counts(write_dataset(Store.at(tmp_path), rows)) == ({"pay": 1}, {"pay": 2})


def test_rows_are_counted_by_what_made_them_and_what_became_of_them(tmp_path: Path) -> None:
    row = original("a", "train", {"text": "t", "label": "x"})
    dropped = {**original("b", "train", {"text": "t", "label": "y"}), "reason": "late: at 3:15\nor so"}
    bare = original("c", "train", {"text": "t", "label": None})
    children = [added(row, "eda", n, 1, None, label="z") for n in range(10_000)]
    for child in children[:2]:
        child["reason"] = f"unchanged: {child['id']}"
    store = finished_stage(Run(tmp_path), "data").store
    data = write_dataset(store, [dropped, row, *children, bare])
    assert flows(data) == [
        ("originals", "accepted", 2), ("originals", "late", 1), ("eda", "accepted", 9998), ("eda", "unchanged", 2),
    ]  # fmt: skip
    assert label_counts(data) == ({"y": 1, "x": 1, "z": 0}, {"y": 1, "x": 1, "z": 10_000})


def test_held_out_loss_is_set_against_the_training_loss_since_the_measurement_before() -> None:
    losses = [4.0, 2.0, 2.0, 1.0, 0.6, 0.2]
    held_out = {2: 3.5, 4: 2.5, 6: 2.6}
    lines = [{"step": i, "loss": loss, "validation_loss": held_out.get(i)} for i, loss in enumerate(losses, 1)]
    found = gaps(lines)
    assert [(step, loss) for step, loss, _ in found] == list(held_out.items())
    assert [distance for *_, distance in found] == pytest.approx([3.5 - 3.0, 2.5 - 1.5, 2.6 - 0.4])
    [picture] = gap(Pictures(), {"tuned": lines}, "Held out")
    assert "tuned: lowest validation loss 2.500 at step 4; gap from 0.500 to 2.200" in picture.description
    assert list(gap(Pictures(), {"tuned": lines[:3]}, "Held out")) == []


def test_a_reward_model_is_drawn_with_its_calibration_and_said_in_words(run: Run) -> None:
    rng = np.random.default_rng(0)
    judged = JudgedPairs(
        rng.normal(size=(80, 2, 2)), rng.integers(1, 90, size=(80, 2)).astype(float), np.arange(80) < 5
    )
    artifact = finished_stage(run, "reward", "reward", "model", detail={"pairs": tell(judged)})
    artifact.store.write("trace.jsonl", b"")
    write_report(run)
    page = Page(run.store.read("report.html").decode())
    assert page.faults == []
    said = " ".join(text for _, text in page.text)
    accuracy = tell(judged)["metrics"]["held_out_accuracy"]
    assert "Of 80 held-out pairs, 5 of them ties, which have no right answer" in said
    assert f"the better answer has the higher score in {accuracy:.1%}" in said
    assert "Its 2 members disagree" in said
    assert "Calibration of reward" in said


def test_rounds_and_steps_are_counted_in_whole_numbers() -> None:
    history = [{"accepted": 10 * n, "made": 20 * n} for n in range(1, 4)]
    found = re.findall(r">([\d.]+)</text>", figures.growth(Pictures(), history, "rows by round").svg)
    assert {"1", "2", "3"} <= set(found)
    assert not {"1.25", "1.5", "1.50", "2.5", "2.50"} & set(found)


SVG = "{http://www.w3.org/2000/svg}"


def test_a_model_has_one_row_and_one_colour_under_every_judge() -> None:
    judges = [["a", "b", "c"], ["c", "b", "a"], ["b", "c"], ["a", "b", "c"], ["c", "a", "b"]]
    marks = [{name: {"value": -i, "low": -i - 1, "high": 1 - i} for i, name in enumerate(one)} for one in judges]
    detail = {"judges": {f"judge {i}": {"marks": found} for i, found in enumerate(marks)}}
    first, second = judging.pictures_of(Pictures(), detail)
    panels = [
        panel for picture in (first, second) for panel in ET.fromstring(picture.svg).iter(f"{SVG}g")
        if "axes_" in panel.get("id", "")
    ]  # fmt: skip
    points = [
        [(round(float(point.attrib["y"]), 2), point.attrib["style"]) for point in panel.iter(f"{SVG}use")
         if "fill: var(--c" in point.get("style", "")]
        for panel in panels
    ]  # fmt: skip
    assert [len(panel) for panel in points] == [len(one) for one in judges]
    placed = {pair for one, panel in zip(judges, points, strict=True) for pair in zip(one, panel, strict=True)}
    assert len(placed) == 3, "one place and colour for each model"
    assert len({y for _, (y, _) in placed}) == 3
