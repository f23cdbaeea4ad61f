"""The work of judging: judgements as exactly-once data stages, then figures over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tilth import ui
from tilth.config import digest
from tilth.data.chain import Chain, cut
from tilth.data.dataset import Dataset
from tilth.data.engine import run_units
from tilth.data.finish import finish, finished
from tilth.data.ledger import Ledger
from tilth.data.transform import Inputs, Transform
from tilth.errors import StageError
from tilth.evaluate import reuse
from tilth.evaluate.judging.step import Judging
from tilth.evaluate.judging.tally import Draws, Judged, agreements, corrected, self_preference, tally
from tilth.evaluate.scores import LEVEL, p_value
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.evaluate.judging.stage import JudgeAnswers
    from tilth.runs import Artifact, Out

#: a figure of a judge: name in the metrics, where it stands in the tally
_PER_MODEL = ("win_rate", "lc_win_rate")


def judge(stage: JudgeAnswers, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
    """See `JudgeAnswers`."""
    models, data = _judged_rows(stage, out, inputs)
    context = Inputs.of(inputs, out.pins)
    judged = {
        name: Judged(models, list(_judgements(name, stage, out, data, models, context).rows())) for name in stage.judges
    }
    for name, item in judged.items():
        if not item.outcomes() and not any(item.scores):
            why = item.rows[0]["meta"]["judged"]["failures"][:1]
            raise StageError(f"{out.stage}: {name} could judge no row; it said of the first: {why}")
    draws = Draws(stage.bootstrap.samples, stage.bootstrap.seed)
    told = corrected({name: tally(item, stage.baseline, draws) for name, item in judged.items()})
    detail: dict[str, Any] = {
        "rows": len(data), "judged_models": list(models), "baseline": stage.baseline, "judges": told,
        "agreement": agreements(judged, stage.people, draws),
        "self_preference": self_preference(judged, _own(stage, inputs), draws),
    }  # fmt: skip
    detail["verdicts"] = list(_verdicts(told, stage.baseline))
    for line in detail["verdicts"]:
        ui.reporter().say(line, event="verdict", stage=out.stage)
    return out.artifact(_flat(detail), {"rows": len(data), "judges": len(told), "models": len(models)}, detail)


def _judged_rows(stage: JudgeAnswers, out: Out, inputs: Mapping[str, Artifact]) -> tuple[tuple[str, ...], Dataset]:
    """The models and the rows that are judged."""
    if stage.data is not None:
        models, data = tuple(stage.columns), Dataset.open(inputs[stage.data]).split(stage.split)
    else:
        artifact = inputs[str(stage.answers)]
        told = artifact.detail.get("models", {})
        models = tuple(name for name, item in told.items() if item.get("task") == "generation")
        if not models:
            raise StageError(
                f"{out.stage}: {stage.answers} holds no answers to judge; its task must be generation, not "
                f"{', '.join(item.get('task', artifact.kind) for item in told.values()) or artifact.kind}"
            )
        data = Dataset.open(artifact.store.sub(f"predictions/{models[0]}"))
    if not len(data):
        raise StageError(f"{out.stage}: there are no rows to judge in split {stage.split!r}")
    for where, name in stage.unknown(models):
        raise StageError(f"{out.stage}: {where} names {name!r}, which is none of the models: {', '.join(models)}")
    return models, data


def _judgements(
    name: str, stage: JudgeAnswers, out: Out, data: Dataset, models: tuple[str, ...], context: Inputs
) -> Dataset:
    """The rows with a judge's word, from storage where an earlier attempt finished them."""
    store = out.store.sub(f"predictions/{name}")
    if (dataset := finished(store)) is not None:
        return dataset
    step = Judging(
        judge=stage.judges[name], models=models, places=stage.columns, answers=stage.answers,
        question=stage.question, seed=stage.seed,
    )  # fmt: skip
    steps: tuple[Transform, ...] = (step,)
    if (told := reuse.earlier(out, name, _judged_key(name, stage, out, data, models))) is not None:
        ui.reporter().say(f"{out.stage}: {name} has judged these answers before")
        data, steps = told, ()
    ledger = Ledger(store, f"{out.fingerprint}/{name}", cut(data))
    run_units(Chain(data.store, data.row_type, steps, context), ledger, stage.resources, f"{out.stage}: {name}")
    dataset = finish(ledger, data.row_type)
    for row in dataset.rejected_rows():
        raise StageError(f"{out.stage}: {name} could not judge row {row['id']} ({row['reason']}); mend or drop it")
    return dataset


def _judged_key(name: str, stage: JudgeAnswers, out: Out, data: Dataset, models: tuple[str, ...]) -> str:
    """The identity of what a judge says: the judge, the question and the answers, however those are measured."""
    parts = {key: out.identity.get(key) for key in ("data", "split", "columns", "question", "seed")}
    parts["version"] = stage.asks
    home = Store.at(data.store.url.rpartition("/")[0])
    said = [reuse.key_of(home.sub(model)) for model in models] if stage.answers else []  # with what they were asked
    return digest([parts, said, models, out.identity.get("judges", {}).get(name)])


def _own(stage: JudgeAnswers, inputs: Mapping[str, Artifact]) -> dict[str, list[str]]:
    """Judge → the judged models that it is itself, where the evaluation says what its models are."""
    if stage.answers is None:
        return {}
    titles = inputs[str(stage.answers)].detail.get("titles", {})
    asked = {name: getattr(item, "generator", None) for name, item in stage.judges.items()}
    return {
        name: [model for model, title in titles.items() if title == generator.title]
        for name, generator in asked.items()
        if generator is not None
    }


def _verdicts(told: Mapping[str, Any], baseline: str | None) -> Iterator[str]:
    """A line for each judge and model that is held against the baseline, else each judge's ranking.

    `n` is of the rows of which the judge had something to say.
    """
    for name, item in told.items():
        for model, found in item.get("against", {}).items():
            if "win_rate" in found:
                plain, fair = (_share(found[key]) for key in _PER_MODEL)
                word = "not distinguishable" if found["holm"] >= LEVEL else f"{p_value(found['holm'])} by Holm"
                n = found["win_rate"]["n"]
                yield (f"{name}: {model} wins {plain} over {baseline}, {fair} at equal length: {word} at n = {n}")
        if baseline is None and "elo" in item:
            order = sorted(item["elo"].items(), key=lambda pair: -pair[1]["value"])
            ratings = ", ".join(f"{model} {figure['value']:.0f}" for model, figure in order)
            yield f"{name}: {ratings} at n = {order[0][1]['n']}"


def _share(figure: Mapping[str, float]) -> str:
    return f"{100 * figure['value']:.1f} % [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _flat(detail: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of the artifact: JUDGE/MODEL/FIGURE with _low and _high, JUDGE/BIAS, JUDGE/kappa_people."""
    found: dict[str, float] = {}
    for name, item in detail["judges"].items():
        figures = {f"{model}/mark": figure for model, figure in item.get("marks", {}).items()}
        figures |= {f"{model}/elo": figure for model, figure in item.get("elo", {}).items()}
        for model, against in item.get("against", {}).items():
            figures |= {f"{model}/{key}": against[key] for key in _PER_MODEL if key in against}
        figures |= item["biases"]
        for key, figure in figures.items():
            found |= {f"{name}/{key}": figure["value"]}
            found |= {f"{name}/{key}_{end}": figure[end] for end in ("low", "high")}
    for name, item in detail["agreement"].get("with_people", {}).items():
        for end in ("", "_low", "_high"):
            if (value := item["majority"][f"kappa{end}"]) is not None:
                found[f"{name}/kappa_people{end}"] = value
    return found
