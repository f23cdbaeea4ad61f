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
from tilth.data.texts import refuse_encoded
from tilth.data.transform import Inputs, Transform
from tilth.errors import StageError
from tilth.evaluate import reuse, transfer
from tilth.evaluate.measures.base import Measure
from tilth.evaluate.mistakes import mistakes
from tilth.evaluate.scores import (
    compared_detail,
    compared_with,
    flat,
    intervals,
    plain,
    score,
    shown,
    told_unlike,
    unlike,
    verdict,
)
from tilth.evaluate.slices import cut_by, slices
from tilth.evaluate.tasks.base import Pass
from tilth.evaluate.tasks.prompting import ASKED
from tilth.evaluate.training import Neighbours, contaminated

if TYPE_CHECKING:
    from tilth.data.bootstrap import Interval
    from tilth.evaluate.scores import Comparison, Scored
    from tilth.evaluate.stage import Evaluate
    from tilth.runs import Artifact, Out

_EXAMPLES = 100  # contaminated rows that are named


def evaluate(stage: Evaluate, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
    """Predict with every model, score, compare, say the verdict; see `Evaluate`."""
    source = Dataset.open(inputs[stage.data])
    data = source.split(stage.split)
    if not len(data):
        raise StageError(
            f"{out.stage}: {stage.data} has no rows in split {stage.split!r}; it has {_splits(inputs[stage.data])}"
        )
    if how := stage.trained_on:
        refuse_encoded(Dataset.open(inputs[how.data]).row_type, how.data, f"{out.stage}: trained_on")
    context = Inputs.of(inputs, out.pins)
    if not out.store.exists(ASKED) and (asked := stage.task.told(source.rows())) is not None:
        out.store.write_json(ASKED, asked)
    predicted = {name: _predicted(name, stage, out, source, context) for name in stage.named}
    metrics = stage.task.metrics
    scored = score(predicted, metrics)
    drawn = stage.bootstrap.samples, stage.bootstrap.seed
    found = {name: intervals(item, *drawn) for name, item in scored.items()}
    compared = compared_with(scored, stage.baseline, *drawn)
    tasks = transfer.slices(predicted, stage.single, *drawn, metrics)
    verdicts = _verdicts(stage.baseline, found, compared, scored, len(data)) + transfer.verdicts(tasks, stage.single)
    for line in verdicts:
        ui.reporter().say(line, event="verdict", stage=out.stage)
    detail = {
        "split": stage.split, "rows": len(data), "baseline": stage.baseline, "verdicts": verdicts,
        "titles": {name: item if isinstance(item, str) else item.title for name, item in stage.named.items()},
        "models": {name: {**item.detail, "intervals": plain(found[name], item)} for name, item in scored.items()},
        "differences": {name: compared_detail(items) for name, items in compared.items()},
        **(transfer.detail(tasks, stage.single) if tasks else {}),
    }  # fmt: skip
    seen = _looked_into(stage, inputs, context, predicted, scored, detail)
    counts = {"rows": len(data), "models": len(scored)}
    return out.artifact(flat(found, compared) | transfer.flat(tasks) | seen, counts, detail)


def _looked_into(
    stage: Evaluate,
    inputs: Mapping[str, Artifact],
    context: Inputs,
    predicted: Mapping[str, list[Row]],
    scored: Mapping[str, Scored],
    detail: dict[str, Any],
) -> dict[str, float]:
    """Adds to `detail` slices, contamination and errors; the share of rows that are contaminated, where looked for."""
    drawn = stage.bootstrap.samples, stage.bootstrap.seed
    detail["slices"] = slices(predicted, scored, stage.slices, *drawn)
    rows = next(iter(predicted.values()))
    neighbours, metrics = None, {}
    if how := stage.trained_on:
        training = Dataset.open(inputs[how.data]).split(how.split)
        seen = contaminated(rows, training, how)
        detail["contamination"] = {name: asdict(item) for name, item in sorted(seen.items())[:_EXAMPLES]}
        parts = ["seen in training" if row["id"] in seen else "not seen" for row in rows]
        detail["slices"]["contamination"] = cut_by(parts, scored, *drawn)
        metrics["contaminated"] = round(len(seen) / len(rows), 6)
        neighbours = Neighbours(training, how, context) if how.nearest else None
    for name, item in scored.items():
        detail["models"][name] |= mistakes(predicted[name], item, neighbours)
    return metrics


def _predicted(name: str, stage: Evaluate, out: Out, source: Dataset, context: Inputs) -> list[Row]:
    """The rows with the model's predictions, from storage where an earlier attempt finished them."""
    store = out.store.sub(f"predictions/{name}")
    if (dataset := finished(store)) is None:
        data, steps = source.split(stage.split), _steps(name, stage)
        if (said := reuse.earlier(out, name, reuse.said_key(out, name, stage.asked_for))) is not None:
            ui.reporter().say(f"{out.stage}: {name} has answered before; only what is measured is new")
            data, steps = said, steps[1:]
        ledger = Ledger(store, f"{out.fingerprint}/{name}", cut(data))
        if ledger.missing():
            fitted = tuple(step.fit(source.rows(), context) for step in steps)
            work = Chain(data.store, data.row_type, steps, context, fitted)
            run_units(work, ledger, stage.resources, f"{out.stage}: {name}")
        dataset = finish(ledger, data.row_type)
    for row in dataset.rejected_rows():
        raise StageError(
            f"{out.stage}: {name} could not predict row {row['id']} ({row['reason']}) and a score without it would "
            f"not be the score of the split; mend or drop the row upstream. All such rows: {store.at_url('rejected')}"
        )
    return list(dataset.rows())


def _steps(name: str, stage: Evaluate) -> tuple[Transform, ...]:
    """What a model says of each row, then what the metrics make of it."""
    step = stage.task.step(stage.named[name], Pass(stage.dtype, stage.batch_tokens))
    return (step, Measure(metrics=stage.task.metrics)) if stage.task.metrics else (step,)


def _verdicts(
    baseline: str | None,
    found: Mapping[str, Mapping[str, Interval]],
    compared: Mapping[str, list[Comparison]],
    scored: Mapping[str, Scored],
    rows: int,
) -> list[str]:
    """A line for each comparison, or without a baseline for each model."""
    if baseline is None:
        heads = {name: item.headline for name, item in scored.items() if item.statistics}
        return [
            f"{name}: {head.replace('_', ' ')} {shown(head, found[name][head])} at n = {rows}"
            for name, head in heads.items()
        ]
    lines = []
    for name, items in compared.items():
        if apart := unlike(scored[name], scored[baseline]):
            lines.append(told_unlike(name, baseline, apart, rows))
        for first in items[:1]:
            scores = found[name][first.metric], found[baseline][first.metric]
            lines.append(verdict(name, baseline, *scores, first, rows))
    return lines


def _splits(artifact: Artifact) -> str:
    splits = Dataset.open(artifact).splits()
    return ", ".join(f"{name} {rows:,}" for name, rows in splits.items()) or "no rows at all"
