"""The work of a search: ask, run, choose, repeat with seeds, leave the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tilth import ui
from tilth.errors import StageError
from tilth.search import board
from tilth.search.bench import Bench
from tilth.search.choosing import Candidate, best_first, estimate, front, lead, verdicts, winner
from tilth.search.places import keys_of, value_at, with_value
from tilth.search.study import Study
from tilth.search.trials import Asked, Journal, Listed, curve, scores, shown

if TYPE_CHECKING:
    from tilth.runs import Artifact, Out
    from tilth.search.stage import Search


def search(stage: Search, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
    """See `Search.run`."""
    if out.recipe is None or out.run is None:
        raise StageError(f"{out.stage}: a search runs other stages of a recipe, and there is none")
    bench = Bench.of(stage, out.recipe, out.run)
    written = _written(stage, bench)
    asked = Asked(stage, bench, Journal(out.store.sub("trials")), Study(stage))
    stage.runner.run(asked, bench)
    _all_told(out.stage, asked)
    ranked = [trial for trial in best_first(asked.trials, stage.objectives[0]) if trial.made != written.made]
    candidates = [written, *(Candidate(item.number, item.values, item.scores, item.made) for item in ranked)]
    if stage.repeats is not None:
        _repeat(stage, bench, out, candidates[: 1 + stage.repeats.finalists])
    best = winner(candidates, stage.objectives[0])
    return _leave(stage, bench, out, asked, candidates, best)


def _written(stage: Search, bench: Bench) -> Candidate:
    """The recipe as written, which has run before the search."""
    steps = bench.run.plan(bench.recipe.part(bench.ends))
    made = {step.name: step.fingerprint for step in steps}
    return Candidate(None, {}, scores(stage, bench, made), made)


def _all_told(name: str, asked: Asked) -> None:
    trials = asked.trials
    if any(trial.state == "running" for trial in trials):
        raise StageError(f"{name}: the search was interrupted; run again, and it goes on with these trials")
    if not any(trial.state == "complete" for trial in trials):
        errors = "; ".join(dict.fromkeys(trial.error or trial.state for trial in trials))
        asked.take_back()
        raise StageError(
            f"{name}: none of {len(trials)} trials came to an end: {errors}; mend that and run again, and those that "
            "failed are tried again"
        )


def _repeat(stage: Search, bench: Bench, out: Out, finalists: Sequence[Candidate]) -> None:
    """Run each finalist with each seed, and note its figures; a run that fails is left out."""
    settings = stage.repeats
    if settings is None:
        return
    pairs = [(candidate, seed) for candidate in finalists for seed in settings.seeds]
    values = [with_value(stage.target, candidate.values, settings.path, seed) for candidate, seed in pairs]
    listed = Listed(stage, bench, Journal(out.store.sub("repeats")), values)
    stage.runner.run(listed, bench)
    for (candidate, seed), trial in zip(pairs, listed.trials, strict=True):
        if trial.state == "running":
            raise StageError(f"{out.stage}: the search was interrupted; run again, and it goes on")
        if trial.state == "complete":
            candidate.seeds[seed] = trial.scores[stage.metric]
            candidate.left[seed] = trial.made


def _leave(
    stage: Search, bench: Bench, out: Out, asked: Asked, candidates: Sequence[Candidate], best: Candidate
) -> Artifact:
    """The artifact of the search: what the winner's run left, and what was seen on the way."""
    made = next(iter(best.left.values()), best.made)
    artifact = bench.artifacts({stage.target: made[stage.target]})[stage.target]
    for name in artifact.files:
        out.store.copy(name, artifact.store)
    board.write(out.store, asked.trials)
    bench.run.store.remove("locks")
    said = _said(stage, candidates, best)
    for line in said:
        ui.reporter().say(f"{out.stage}: {line}", event="verdict", stage=out.stage)
    states = [trial.state for trial in asked.trials]
    counts = {"trials": len(states), "failed": states.count("failed"), "pruned": states.count("pruned")}
    detail = _detail(stage, bench, asked, candidates, best) | {"verdicts": said}
    return out.artifact(
        {**artifact.metrics, **_metrics(stage, candidates, best)},
        {**artifact.counts, **counts},
        {**artifact.detail, "search": detail},
    )


def _rivals(stage: Search, candidates: Sequence[Candidate], best: Candidate) -> list[Candidate]:
    """The recipe as written, and the next best of those that the winner was chosen from."""
    rest = [candidate for candidate in candidates if candidate is not best and candidate.number is not None]
    compared = [candidate for candidate in rest if candidate.seeds] if best.seeds else rest
    written = [candidate for candidate in candidates if candidate.number is None and candidate is not best]
    return [*written, *([winner(compared, stage.objectives[0])] if compared else [])]


def _said(stage: Search, candidates: Sequence[Candidate], best: Candidate) -> list[str]:
    first = f"{best.name} is best: {shown(best.values)}"
    return [first, *verdicts(best, _rivals(stage, candidates, best), stage.objectives[0])]


def _metrics(stage: Search, candidates: Sequence[Candidate], best: Candidate) -> dict[str, float]:
    """The deciding figure of the winner and of the recipe as written, and the lead, with intervals where there are."""
    objective, written = stage.objectives[0], candidates[0]
    found: dict[str, float] = {}
    for name, candidate in (("best", best), ("written", written)):
        figures = list(candidate.seeds.values())
        key = f"{name}/{objective.metric}"
        if len(figures) > 1:
            found |= _three(key, asdict(estimate(figures)))
        else:
            found[key] = figures[0] if figures else candidate.scores[objective.metric]
    gap = lead(best, written, objective.sign) if best is not written else None
    return found | (_three("lead", asdict(gap)) if gap is not None else {})


def _three(name: str, item: Mapping[str, float]) -> dict[str, float]:
    return {name: item["value"], f"{name}_low": item["low"], f"{name}_high": item["high"]}


def _detail(
    stage: Search, bench: Bench, asked: Asked, candidates: Sequence[Candidate], best: Candidate
) -> dict[str, Any]:
    complete = [trial for trial in asked.trials if trial.state == "complete"]
    ahead = {complete[place].number for place in front([trial.scores for trial in complete], stage.objectives)}
    kept = ("number", "values", "scores", "state", "error", "seconds", "curve")
    trials = [
        {**{key: value for key, value in asdict(trial).items() if key in kept}, "front": trial.number in ahead}
        for trial in asked.trials
    ]
    data = bench.recipe.model_dump()
    return {
        "stage": stage.target,
        "objectives": [item.model_dump() for item in stage.objectives],
        "space": {path: space.model_dump() for path, space in stage.space.items()},
        "written": {path: value_at(data, keys_of(stage.target, path)) for path in stage.space},
        "written_scores": candidates[0].scores,
        "written_curve": curve(stage, bench, candidates[0].made),
        "trials": trials,
        "importance": asked.study.importance(),
        "finalists": [_finalist(candidate) for candidate in candidates if candidate.seeds],
        "best": best.number,
    }


def _finalist(candidate: Candidate) -> dict[str, Any]:
    figures = list(candidate.seeds.values())
    span = asdict(estimate(figures)) if len(figures) > 1 else {"value": figures[0], "low": None, "high": None}
    seeds = {str(seed): figure for seed, figure in candidate.seeds.items()}
    return {"name": candidate.name, "number": candidate.number, "seeds": seeds, **span}
