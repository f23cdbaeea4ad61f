"""From the artifacts of a run to the sections of its report; what an artifact holds decides what is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilth.data.dataset import MANIFEST, Dataset
from tilth.recipe import MEASURED
from tilth.report import (
    alignment,
    errors,
    figures,
    generation,
    judging,
    people,
    quality,
    rewards,
    search,
    tallies,
    training,
)
from tilth.report.svg import Picture, Pictures
from tilth.report.tasks import tasks, transfer
from tilth.runs import Artifact

TRACE = "trace.jsonl"


@dataclass(frozen=True)
class Table:
    """A table with a caption; numbers are set to the right."""

    caption: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """One part of the page: words, pictures, tables, examples and errors, in that order."""

    anchor: str
    title: str
    words: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: Sequence[Table] = ()
    examples: Sequence[tallies.Example] = ()
    mistakes: Sequence[errors.Mistakes] = ()
    notes: dict[str, str] = field(default_factory=dict)


def sections(artifacts: Mapping[str, Artifact]) -> list[Section]:
    """Every section that the finished stages give rise to, results first."""
    pictures = Pictures()
    reports = [a for a in artifacts.values() if "models" in a.detail]
    datasets = [a for a in artifacts.values() if a.store.exists(MANIFEST)]
    judged = [a for a in artifacts.values() if "judges" in a.detail]
    found = [part for artifact in reports for part in _evaluation(pictures, artifact)]
    found += [_judging(pictures, artifact) for artifact in judged]
    found += [_search(pictures, artifact) for artifact in artifacts.values() if "search" in artifact.detail]
    found += [_data(pictures, artifact) for artifact in datasets]
    found += [part for artifact in datasets for part in _quality(pictures, artifact)]
    found += _training(pictures, artifacts)
    found += [campaign(a.stage, a.detail["campaign"]) for a in artifacts.values() if "campaign" in a.detail]
    told = {a.stage for a in (*reports, *judged, *datasets)} | {
        a.stage for a in artifacts.values() if a.produces == "model"
    }
    found += [_other(artifact) for name, artifact in artifacts.items() if name not in told and artifact.metrics]
    return found


def campaign(name: str, found: Mapping[str, Any]) -> Section:
    """What people said, of a stage or of a campaign."""
    tables = [Table(*lines) for lines in people.tables(found) if lines[-1]]
    return Section(f"people-{name}", f"People: {name}", (people.words(found),), tables=tables)


def _data(pictures: Pictures, artifact: Artifact) -> Section:
    dataset = Dataset.open(artifact)
    flows = tallies.flows(dataset)
    drawn = [figures.flow(pictures, flows, f"Rows of {artifact.stage}: where from, where to")] if flows else []
    before, after = tallies.label_counts(dataset)
    if after and before != after:
        drawn.append(figures.balance(pictures, before, after, f"Training rows of each label after {artifact.stage}"))
    splits = ", ".join(f"{rows:,} {split}" for split, rows in dataset.splits().items())
    words = [f"{len(dataset):,} {dataset.row_type} rows: {splits}."]
    if carried := dataset.counts.get("carried"):
        words.append(f"{carried:,} rows were passed through as they came.")
    tables = [Table("Rows by origin and fate", ("made by", "fate", "rows"), flows, folded=True)]
    if "rounds" in artifact.detail:
        words.append(generation.ended(artifact.detail))
        drawn += generation.growth(pictures, artifact.detail, artifact.stage)
        tables += _generation_tables(artifact.detail)
    shown = tallies.examples(dataset)
    return Section(f"data-{artifact.stage}", f"Data: {artifact.stage}", tuple(words), tuple(drawn), tables, shown)


def _quality(pictures: Pictures, artifact: Artifact) -> Iterator[Section]:
    """What was measured of the made rows, where it was."""
    found, stage = artifact.store.read_json(MEASURED), artifact.stage
    if found is None:
        return
    tables = []
    if lines := quality.diversity(found.get("diversity", {})):
        tables.append(Table("Diversity", quality.DIVERSITY_HEAD, lines))
    if lines := quality.bias(found.get("bias", {})):
        tables.append(Table("Divergence from the originals", quality.BIAS_HEAD, lines))
    drawn = tuple(quality.pictures_of(pictures, found, stage))
    yield Section(f"quality-{stage}", f"Diversity and bias: {stage}", tuple(quality.words(found)), drawn, tables)


def _generation_tables(detail: Mapping[str, Any]) -> Iterator[Table]:
    if lines := generation.foretold(detail):
        yield Table("Cost, foretold and actual", generation.FORETOLD_HEAD, lines)
    yield Table("Rounds", generation.ROUND_HEAD, generation.rounds(detail), folded=True)


def _training(pictures: Pictures, artifacts: Mapping[str, Artifact]) -> Iterator[Section]:
    """All models together, so that their curves can be compared."""
    models = {name: artifact for name, artifact in artifacts.items() if artifact.produces == "model"}
    if not models:
        return
    traces = {name: trace for name, artifact in models.items() if (trace := _trace(artifact))}
    drawn = [figures.curves(pictures, traces, "Loss and gradient norm by step")] if traces else []
    drawn += [picture for name, trace in traces.items() for picture in tasks(pictures, name, trace)]
    drawn += training.gap(pictures, traces, "Rows that were held out")
    drawn += [*training.answers(pictures, traces), *training.ranges(pictures, models)]
    tables = [_numbers(f"Metrics of {name}", item.metrics) for name, item in models.items() if item.metrics]
    tables += [_probes(name, item.detail) for name, item in models.items() if "probes" in item.detail]
    seen = {name: rows for name, trace in traces.items() if (rows := training.alarms(trace))}
    tables += [Table(f"What detectors saw in {name}", training.ALARM_HEAD, rows) for name, rows in seen.items()]
    yield Section("training", "Training", pictures=tuple(drawn), tables=tables)
    told = {name: item.detail["pairs"] for name, item in models.items() if "pairs" in item.detail}
    yield from (_reward(pictures, name, pairs) for name, pairs in told.items())
    for name, artifact in models.items():
        if found := alignment.looked(artifact):
            yield _feedback(pictures, name, artifact, found)


def _feedback(pictures: Pictures, name: str, artifact: Artifact, found: Sequence[alignment.Look]) -> Section:
    """What became of held-out prompts while a policy learnt from feedback."""
    tables = [Table("Every look at held-out prompts", *alignment.table(found), folded=True)]
    head, rows = alignment.side_by_side(found)
    if rows:
        tables.append(Table("Answers to the same prompts", head, rows, folded=True))
    drawn = tuple(alignment.pictures_of(pictures, found, name))
    return Section(
        f"feedback-{name}", f"Reward and gold: {name}", tuple(alignment.words(artifact, found)), drawn, tables
    )


def _reward(pictures: Pictures, name: str, pairs: Mapping[str, Any]) -> Section:
    """What a reward model makes of held-out pairs."""
    rows = rewards.members(pairs)
    tables = [Table("Members of the ensemble", rewards.MEMBER_HEAD, rows)] if rows else []
    drawn = tuple(rewards.calibration(pictures, name, pairs))
    return Section(f"reward-{name}", f"Reward model: {name}", tuple(rewards.words(pairs)), drawn, tables)


def _probes(name: str, detail: Mapping[str, Any]) -> Table:
    head = ("probe", "before", "after", "change")
    return Table(f"What {name} forgot: general probes before and after training", head, training.forgotten(detail))


def _trace(artifact: Artifact) -> list[dict[str, Any]]:
    if not artifact.store.exists(TRACE):
        return []
    return [json.loads(line) for line in artifact.store.read(TRACE).splitlines() if line.strip()]


def _evaluation(pictures: Pictures, artifact: Artifact) -> Iterator[Section]:
    detail = artifact.detail
    models: dict[str, Any] = detail["models"]
    drawn = figures.forests(pictures, _by_metric(models), "Scores with 95 % intervals", zero=False)
    title = f"Difference from {detail['baseline']}, paired by row, with 95 % intervals"
    drawn += figures.forests(pictures, _differences(detail), title, zero=True)
    tables = [_score_table(models), *_difference_table(detail)]
    if "tasks" in detail:
        drawings, more = transfer(pictures, detail)
        drawn += drawings
        tables += [Table(*table) for table in more]
    tables += [Table(*table) for table in (*errors.slices(detail), *errors.beside(detail))]
    words = (f"{detail['rows']:,} rows of the {detail['split']} split.", *errors.words(artifact.metrics, detail))
    yield Section(f"results-{artifact.stage}", f"Results: {artifact.stage}", words, tuple(drawn), tuple(tables))
    for name, model in models.items():
        if "confusion" in model:
            yield _classes(pictures, artifact.stage, name, model)
        if found := errors.mistakes(model):
            yield Section(f"errors-{artifact.stage}-{name}", f"Errors: {name}", mistakes=found)


def _judging(pictures: Pictures, artifact: Artifact) -> Section:
    detail = artifact.detail
    words = f"Answers of {', '.join(detail['judged_models'])} to {detail['rows']:,} questions."
    drawn = tuple(judging.pictures_of(pictures, detail))
    tables = [Table(*table) for table in judging.tables(detail)]
    return Section(f"judged-{artifact.stage}", f"Judged: {artifact.stage}", (words,), drawn, tables)


def _by_metric(models: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for name, model in models.items():
        for metric, item in model["intervals"].items():
            found.setdefault(metric, []).append({"name": name, **item})
    return found


def _differences(detail: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for name, compared in detail["differences"].items():
        for item in compared:
            found.setdefault(item["metric"], []).append({"name": name, **item["difference"]})
    return found


def _score_table(models: Mapping[str, Any]) -> Table:
    rows = [
        (name, metric, item["value"], item["low"], item["high"], item.get("n"))
        for name, model in models.items()
        for metric, item in model["intervals"].items()
    ]
    return Table("Scores", ("model", "metric", "value", "low", "high", "n"), rows)


def _difference_table(detail: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        (
            *(name, item["metric"], *(item["difference"][k] for k in ("value", "low", "high"))),
            *(item["p"], item.get("holm"), item["test"]),
        )
        for name, compared in detail["differences"].items()
        for item in compared
    ]
    if rows:
        head = ("model", "metric", "difference", "low", "high", "p", "p by Holm", "test")
        family = f"; Holm corrects for all {len(rows)} tests of this table together" if len(rows) > 1 else ""
        yield Table(f"Compared with {detail['baseline']}{family}", head, rows)


def _classes(pictures: Pictures, stage: str, name: str, model: Mapping[str, Any]) -> Section:
    labels, counts = model["labels"], model["confusion"]
    drawn = figures.heat_map(pictures, counts, labels, f"What {name} takes each label for")
    head = ("label", "precision", "recall", "f1", "support", "predicted")
    classes = Table("Every class", head, [[row[key] for key in head] for row in model["per_class"]], folded=True)
    mixed = Table("Mixed up most often", ("true", "predicted", "rows"), tallies.confused(counts, labels))
    return Section(f"classes-{stage}-{name}", f"Classes: {name}", (), (drawn,), (mixed, classes))


def _search(pictures: Pictures, artifact: Artifact) -> Section:
    told, stage = artifact.detail["search"], artifact.stage
    counted = f"{artifact.counts['trials']} trials, {artifact.counts['pruned']} ended early, "
    words = (*told["verdicts"], f"{counted}{artifact.counts['failed']} failed.")
    drawn = tuple(search.pictures_of(pictures, told, stage))
    return Section(f"search-{stage}", f"Search: {stage}", words, drawn, [Table(*item) for item in search.tables(told)])


def _other(artifact: Artifact) -> Section:
    table = _numbers("Metrics", artifact.metrics)
    return Section(f"stage-{artifact.stage}", f"{artifact.kind}: {artifact.stage}", tables=(table,))


def _numbers(caption: str, metrics: Mapping[str, Any]) -> Table:
    return Table(caption, ("metric", "value"), [item for item in metrics.items() if item[1] is not None])
