"""What a run would do, and what a run did, as plain data and as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from tilth import ui
from tilth.recipe import PROBE, Recipe, Stage
from tilth.runs import Artifact, Run, Step
from tilth.weights import Weights, in_folder, weights


def plan(recipe: Recipe, out: str | Path | None, probe: bool = False) -> list[dict[str, Any]]:
    """One mapping per stage: reused or run, why, and the estimated cost where it is known.

    With `probe`, stages that can are tried on a few rows of their finished inputs, and what that showed is kept in
    the run for the report.
    """
    run = Run(out if out is not None else Path("/nonexistent"))
    rows: dict[str, Mapping[str, int]] = {}
    table = []
    steps = {step.name: step for step in run.plan(recipe)}
    for step in steps.values():
        if probe and not step.reused:
            _probe(run, step)
        estimate = _estimate(run, step, rows)
        if not step.reused and (held := step.stage.memory(lambda model: _sized(model, steps))) is not None:
            estimate.setdefault("gib", held / 2**30)
        if not step.reused and (again := step.stage.runs_again(recipe)):
            estimate |= _repeated(run, again)
        rows[step.name] = estimate.pop("splits", {})
        table.append({
            "stage": step.name, "kind": step.stage.kind, "reused": step.reused, "why": step.why,
            "fingerprint": step.fingerprint[:16], "estimate": estimate,
        })  # fmt: skip
    return table


def _estimate(run: Run, step: Step, rows: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """From the finished artifact where there is one, else the stage's own rough figures; what is unknown is absent.

    `rows`: what the stages before leave, by split; `splits` in what is returned is what this one leaves. The time is
    that of the latest finished version of the stage, in proportion to its work (`Stage.work`).
    """
    if step.reused and (artifact := Artifact.read(step.store)) is not None:
        counts = artifact.counts
        held = counts.get("accepted", counts.get("rows"))
        known = {} if held is None else {"rows": held}
        return {**known, "seconds": 0.0, "splits": counts.get("splits", {})}
    given = _given(step.stage, rows)
    estimate = step.stage.estimate(given)
    found = {"splits": given, **{name: value for name, value in estimate.items() if value or name == "splits"}}
    found |= step.store.read_json(PROBE) or {}
    if (earlier := run.artifacts(step.name)) and "seconds" not in found:
        now, then = step.stage.work(given, earlier[-1]) or (1, 1)
        found["seconds"] = earlier[-1].seconds * (now / then if now and then else 1)
    return found


def _given(stage: Stage, rows: Mapping[str, Mapping[str, int]]) -> Mapping[str, int]:
    """The rows by split of the data of a stage, else of the largest that it refers to; none where they are unknown."""
    refs = list(stage.refs())
    if own := [rows[ref.stage] for path, ref in refs if path.partition(".")[0] == "data"]:
        return sum(map(Counter, own), Counter[str]()) if all(own) else {}
    return max((rows[ref.stage] for _, ref in refs), key=lambda splits: sum(splits.values()), default={})


def _repeated(run: Run, again: Mapping[str, int]) -> dict[str, float]:
    """The cost of a stage that runs others again: as long each time as they took last, where all of them have run."""
    found: dict[str, float] = {"trials": max(again.values())}
    took = {name: run.artifacts(name) for name in again}
    if all(took.values()):
        found["seconds"] = sum(times * took[name][-1].seconds for name, times in again.items())
    return found


def _sized(model: str, steps: Mapping[str, Step]) -> Weights | None:
    """The weights of a model by name; of a stage's as it left it, else as large as what it starts from."""
    if not model.startswith("@"):
        return weights(model)
    step = steps[model[1:]]
    if step.reused and step.store.is_local:
        return in_folder(step.store.local("model"))
    return _sized(step.stage.made_from, steps) if step.stage.made_from is not None else None


def _probe(run: Run, step: Step) -> None:
    """Let the stage measure itself, where all that it builds on is finished."""
    before = {str(ref): run.artifact(step, ref) for _, ref in step.stage.refs()}
    if any(artifact is None for artifact in before.values()):
        ui.reporter().say(f"{step.name}: no probe, since what it builds on has not run here; run that first")
        return
    found = step.stage.probe({ref: artifact for ref, artifact in before.items() if artifact is not None})
    if found:
        step.store.write_json(PROBE, found)


def plan_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("stage", "kind", "will", "why", "rows", "tokens", "cost", "time", "memory")
    for row in rows:
        cost = row["estimate"]
        trials = f" {cost['trials']:,} trials" if "trials" in cost else ""
        table.add_row(
            row["stage"], escape(row["kind"]), "reuse" if row["reused"] else f"run{trials}", escape(row["why"]),
            _number(cost.get("rows")), _number(cost.get("tokens")), _number(cost.get("cost")),
            _time(cost.get("seconds")), _memory(cost.get("gib")),
        )  # fmt: skip
    return table


def show(run: Run) -> dict[str, Any]:
    """Every stage of the last run: state, why, counts, metrics, seconds."""
    artifacts = run.current()
    stages = []
    for row in run.store.read_json("plan.json"):
        artifact = artifacts.get(row["stage"])
        state = "unfinished" if artifact is None else "reused" if row["reused"] else "run"
        stages.append({
            "stage": row["stage"], "state": state, "why": row["why"], "fingerprint": row["fingerprint"][:16],
            "counts": artifact.counts if artifact else {}, "metrics": artifact.metrics if artifact else {},
            "seconds": artifact.seconds if artifact else None, "at": artifact.store.url if artifact else None,
        })  # fmt: skip
    return {"run": run.store.url, "stages": stages}


def run_table(summary: dict[str, Any]) -> Table:
    table = _table("stage", "state", "why", "counts", "metrics", "time", title=escape(summary["run"]))
    for row in summary["stages"]:
        table.add_row(
            row["stage"], row["state"], escape(row["why"]),
            escape(_pairs(row["counts"])), escape(_pairs(row["metrics"])), _time(row["seconds"]),
        )  # fmt: skip
    return table


def _table(*names: str, title: str | None = None) -> Table:
    """A table that breaks what is too long instead of cutting it: names are copied from it."""
    return Table(*(Column(name, overflow="fold") for name in names), title=title)


def _pairs(values: dict[str, Any]) -> str:
    """One line for each figure; a figure's interval, NAME_low and NAME_high, stands behind it."""
    simple = {key: value for key, value in values.items() if isinstance(value, int | float)}
    bounds = {key for key in simple if key.removesuffix("_low").removesuffix("_high") in simple.keys() - {key}}
    return "\n".join(f"{key} {_number(simple[key])}{_interval(simple, key)}" for key in simple if key not in bounds)


def _interval(values: dict[str, Any], key: str) -> str:
    low, high = values.get(f"{key}_low"), values.get(f"{key}_high")
    return "" if low is None or high is None else f" [{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) or value >= 1000 else f"{value:.4g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _memory(gib: float | None) -> str:
    if gib is None:
        return ""
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"
