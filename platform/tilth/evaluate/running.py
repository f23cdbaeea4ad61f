"""The work of an evaluation: predictions as exactly-once data stages, then scores over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tilth import ui
from tilth.data.chain import Chain, cut
from tilth.data.dataset import Dataset
from tilth.data.engine import run_units
from tilth.data.finish import finish, finished
from tilth.data.ledger import Ledger
from tilth.data.schema import Row
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.evaluate import transfer
from tilth.evaluate.predict import Predict
from tilth.evaluate.scores import compare, compared_detail, flat, intervals, known_labels, score, shown, verdict

if TYPE_CHECKING:
    from tilth.data.bootstrap import Interval
    from tilth.evaluate.scores import Comparison, Scored
    from tilth.evaluate.stage import Evaluate
    from tilth.runs import Artifact, Out


def evaluate(stage: Evaluate, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
    """Predict with every model, score, compare, say the verdict; see `Evaluate`."""
    data = Dataset.open(inputs[stage.data]).split(stage.split)
    if not len(data):
        raise StageError(
            f"{out.stage}: {stage.data} has no rows in split {stage.split!r}; it has {_splits(inputs[stage.data])}"
        )
    predicted = {name: _predicted(name, stage, out, data, Inputs.of(inputs)) for name in stage.models}
    scored = _scored(predicted)
    drawn = stage.bootstrap.samples, stage.bootstrap.seed
    found = {name: intervals(item, *drawn) for name, item in scored.items()}
    baseline = stage.baseline
    compared = {
        name: compare(item, scored[baseline], *drawn) for name, item in scored.items() if baseline and name != baseline
    }
    slices = transfer.slices(predicted, stage.single, *drawn)
    verdicts = _verdicts(baseline, found, compared, scored, len(data)) + transfer.verdicts(slices, stage.single)
    for line in verdicts:
        ui.reporter().say(line, event="verdict", stage=out.stage)
    detail = {
        "split": stage.split, "rows": len(data), "baseline": baseline, "verdicts": verdicts,
        "models": {name: {**item.detail, "intervals": _plain(found[name])} for name, item in scored.items()},
        "differences": {name: compared_detail(items) for name, items in compared.items()},
        **(transfer.detail(slices, stage.single) if slices else {}),
    }  # fmt: skip
    metrics = flat(found, compared) | transfer.flat(slices)
    return out.artifact(metrics, {"rows": len(data), "models": len(scored)}, detail)


def _predicted(name: str, stage: Evaluate, out: Out, data: Dataset, context: Inputs) -> list[Row]:
    """The rows with the model's predictions, from storage where an earlier attempt finished them."""
    store = out.store.sub(f"predictions/{name}")
    if (dataset := finished(store)) is None:
        step = Predict(model=stage.models[name], dtype=stage.dtype, batch_tokens=stage.batch_tokens)
        ledger = Ledger(store, f"{out.fingerprint}/{name}", cut(data))
        work = Chain(data.store, data.row_type, (step,), context)
        run_units(work, ledger, stage.resources, f"{out.stage}: {name}")
        dataset = finish(ledger, data.row_type)
    for row in dataset.rejected_rows():
        raise StageError(
            f"{out.stage}: {name} could not predict row {row['id']} ({row['reason']}) and a score without it would "
            f"not be the score of the split; mend or drop the row upstream. All such rows: {store.at_url('rejected')}"
        )
    return list(dataset.rows())


def _scored(predicted: Mapping[str, list[Row]]) -> dict[str, Scored]:
    """Scores by model; StageError where models of two kinds are mixed, as no comparison would hold."""
    labels = known_labels(predicted)
    scored = {name: score(rows, labels) for name, rows in predicted.items()}
    tasks = {name: item.detail["task"] for name, item in scored.items()}
    if len(set(tasks.values())) > 1:
        raise StageError(f"models of two kinds in one evaluation: {tasks}; write one evaluate stage for each kind")
    return scored


def _verdicts(
    baseline: str | None,
    found: Mapping[str, Mapping[str, Interval]],
    compared: Mapping[str, list[Comparison]],
    scored: Mapping[str, Scored],
    rows: int,
) -> list[str]:
    """A line for each comparison, or without a baseline for each model."""
    if baseline is None:
        heads = {name: item.headline for name, item in scored.items()}
        return [
            f"{name}: {head.replace('_', ' ')} {shown(head, found[name][head])} at n = {rows}"
            for name, head in heads.items()
        ]
    lines = []
    for name, (first, *_) in compared.items():
        scores = found[name][first.metric], found[baseline][first.metric]
        lines.append(verdict(name, baseline, *scores, first, rows))
    return lines


def _plain(found: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: asdict(item) for name, item in found.items()}


def _splits(artifact: Artifact) -> str:
    splits = Dataset.open(artifact).splits()
    return ", ".join(f"{name} {rows:,}" for name, rows in splits.items()) or "no rows at all"
