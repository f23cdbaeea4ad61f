"""What a report shows of a reward model: how often it is right on held-out pairs, how sure it is, and its bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tilth.report.svg import INK, MUTED, SERIES, Picture, Pictures, drawing

MEMBER_HEAD = ("member", "accuracy")


def calibration(pictures: Pictures, stage: str, pairs: Mapping[str, Any]) -> Iterator[Picture]:
    """The model's own probability of the answer that it prefers, against how often people preferred it too."""
    curve: Sequence[Mapping[str, float]] = pairs["calibration"]
    if not curve:
        return
    columns = ("confidence", "accuracy", "low", "high", "pairs")
    x, y, low, high, sizes = ([part[name] for part in curve] for name in columns)
    with drawing(4.6, 3.4) as (figure, (axes,)):
        axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
        axes.vlines(x, low, high, color=MUTED, linewidth=1.2)
        axes.plot(x, y, "o-", color=SERIES[0], markersize=5, label="held-out pairs")
        axes.set(xlabel="probability by the model", ylabel="share it gets right", xlim=(0.48, 1.02))
        axes.legend(loc="lower right")
    said = "; ".join(f"{a:.0%} sure: {b:.0%} right of {n:,} pairs" for a, b, n in zip(x, y, sizes, strict=True))
    yield pictures.of(figure, f"Calibration of {stage}, with 95 % intervals", said)


def words(pairs: Mapping[str, Any]) -> Iterator[str]:
    """What the figures say, in sentences."""
    metrics = pairs["metrics"]
    ties = f", {pairs['ties']:,} of them ties, which have no right answer" if pairs["ties"] else ""
    if (accuracy := metrics.get("held_out_accuracy")) is not None:
        low, high = metrics["held_out_accuracy_low"], metrics["held_out_accuracy_high"]
        chance = " Chance is within that." if low <= 0.5 <= high else ""
        yield (
            f"Of {pairs['pairs']:,} held-out pairs{ties}, the better answer has the higher score in {accuracy:.1%}, "
            f"95 % interval {low:.1%} to {high:.1%}.{chance} Its confidence is off by "
            f"{metrics['calibration_error']:.1%} on average."
        )
    if "longer_chosen" in pairs:
        yield (
            f"People chose the longer answer in {pairs['longer_chosen']:.1%} of the pairs, the model prefers it in "
            f"{pairs['longer_preferred']:.1%}."
        )
    if (before := pairs.get("with_length")) is not None:
        told = f", with accuracy {before['held_out_accuracy']:.1%}" if "held_out_accuracy" in before else ""
        yield f"What length explains is taken off the scores; before, they stood{told}."
    if (members := pairs.get("members")) is not None:
        yield (
            f"Its {len(members['accuracy'])} members disagree on which answer is better in {members['split']:.1%} of "
            "the pairs."
        )


def members(pairs: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(member, accuracy) of an ensemble; none of a single model."""
    return list(enumerate(pairs.get("members", {}).get("accuracy", ()), start=1))
