"""What a report says of training beside its curves: the gap between rows that are learnt and rows that are held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tilth.report.svg import SERIES, Picture, Pictures, drawing, label
from tilth.runs import Artifact

Trace = Sequence[Mapping[str, Any]]
ALARM_HEAD = ("detector", "limit", "action", "steps", "first", "last", "value at first", "value at last")


def gaps(trace: Trace) -> list[tuple[int, float, float]]:
    """(step, held-out loss, its distance from the training loss) of every measurement.

    The training loss is the mean over the steps since the measurement before: a single batch says little.
    """
    found, since = [], []
    for line in trace:
        since.append(line["loss"])
        if (held_out := line.get("validation_loss")) is not None:
            found.append((line["step"], held_out, held_out - sum(since) / len(since)))
            since = []
    return found


def gap(pictures: Pictures, traces: Mapping[str, Trace], title: str) -> Iterator[Picture]:
    """Held-out loss and its distance from the training loss by step, where there are two measurements or more."""
    measured = {model: found for model, trace in traces.items() if len(found := gaps(trace)) > 1}
    if not measured:
        return
    with drawing(7.6, 2.9, panels=2) as (figure, (left, right)):
        for number, (model, found) in enumerate(measured.items()):
            steps, losses, distances = zip(*found, strict=True)
            colour = SERIES[number % len(SERIES)]
            left.plot(steps, losses, "o-", color=colour, markersize=3.5, label=label(model))
            right.plot(steps, distances, "o-", color=colour, markersize=3.5)
        left.set(xlabel="step", title="validation loss")
        right.set(xlabel="step", title="validation loss less training loss")
        right.axhline(0, color=SERIES[-1], linewidth=0.8)
        left.legend(loc="upper right")
    said = "; ".join(_in_words(model, found) for model, found in measured.items())
    yield pictures.of(figure, title, said)


def _in_words(model: str, found: Sequence[tuple[int, float, float]]) -> str:
    step, loss, _ = min(found, key=lambda item: item[1])
    return (
        f"{model}: lowest validation loss {loss:.3f} at step {step:,}; gap from {found[0][2]:.3f} to {found[-1][2]:.3f}"
    )


def alarms(trace: Trace) -> list[tuple[Any, ...]]:
    """What each detector saw: its limit, what was done, at how many steps, and its values at the first and the last."""
    found: dict[tuple[str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for line in trace:
        for alarm in line.get("alarms", ()):
            found.setdefault((alarm["detector"], alarm["action"]), []).append((line["step"], alarm))
    rows = []
    for (detector, action), seen in found.items():
        (first, told), (last, latest) = seen[0], seen[-1]
        rows.append((detector, told["limit"], action, len(seen), first, last, told["value"], latest["value"]))
    return rows


def answers(pictures: Pictures, traces: Mapping[str, Trace]) -> Iterator[Picture]:
    """How held-out rows were answered by step, where they were asked more than once."""
    for name, trace in traces.items():
        asked = [(line["step"], line["answers"]) for line in trace if "answers" in line]
        if len(asked) < 2:
            continue
        steps = [step for step, _ in asked]
        with drawing(7.6, 2.6) as (figure, (axes,)):
            for colour, key in zip(SERIES, ("rouge_l", "exact_match"), strict=False):
                axes.plot(steps, [found[key] for _, found in asked], "o-", color=colour, markersize=3.5, label=key)
            axes.set(xlabel="step", title="answers to held-out rows", ylim=(0, 1.02))
            axes.legend()
        ends = f"ROUGE-L from {asked[0][1]['rouge_l']:.3f} to {asked[-1][1]['rouge_l']:.3f}"
        yield pictures.of(figure, f"How {name} answers rows that were held out", ends)


def ranges(pictures: Pictures, models: Mapping[str, Artifact]) -> Iterator[Picture]:
    """The range test of each model whose learning rate was found by one."""
    for name, artifact in models.items():
        if not (curve := artifact.detail.get("range_test")):
            continue
        rates, losses = zip(*curve, strict=True)
        chosen = artifact.metrics["learning_rate"]
        with drawing(7.6, 2.6) as (figure, (axes,)):
            axes.plot(rates, losses, color=SERIES[0])
            axes.axvline(chosen, color=SERIES[1], linewidth=1)
            lowest = min(losses)
            axes.set(xscale="log", xlabel="learning rate", title="smoothed loss", ylim=(None, 2 * losses[0] - lowest))
        said = f"lowest at {rates[losses.index(lowest)]:.2g}; taken is {chosen:.2g}, the line"
        yield pictures.of(figure, f"How the learning rate of {name} was found", said)


def forgotten(detail: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """(probe, before, after, change) of everything that was asked of the model before and after training."""
    before, after = detail["probes"]["before"], detail["probes"]["after"]
    return [(name, value, after[name], after[name] - value) for name, value in before.items()]
