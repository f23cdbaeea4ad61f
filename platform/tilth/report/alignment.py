"""What a report says of reinforcement learning: reward against gold and against KL, and answers side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from tilth.report.svg import BAD, SERIES, Picture, Pictures, drawing
from tilth.runs import Artifact
from tilth.train import trace
from tilth.train.ppo import looks

LOOKS = "looks"
Look = Mapping[str, Any]
#: what a look says, and what it is called in the table; the last two where there is a judge, and an ensemble
COLUMNS = {
    "step": "step", "reward": "reward", "gold": "gold", "kl": "KL", "entropy": "entropy", "words": "words",
    "repetition": "repetition", "distinct_2": "distinct 2-grams", "refusals": "refusals", "ended": "ended",
    "win_rate": "win rate", "disagreement": "disagreement",
}  # fmt: skip


def looked(artifact: Artifact) -> list[Look]:
    """All looks of a run at held-out prompts, in order; none where there were none."""
    return [artifact.store.read_json(f"{LOOKS}/{name}") for name in artifact.store.list(LOOKS)]


def pictures_of(pictures: Pictures, found: Sequence[Look], stage: str) -> Iterator[Picture]:
    """Reward and gold by step, and both by the root of KL (Gao et al. 2023, arXiv:2210.10760)."""
    if len(found) < 2:
        return
    steps, roots = [look["step"] for look in found], [math.sqrt(max(0.0, look["kl"])) for look in found]
    part = looks.parting(found)
    with drawing(7.6, 2.9, panels=2) as (figure, (left, right)):
        for axes, places in ((left, steps), (right, roots)):
            for colour, name in zip(SERIES, ("reward",) if _without_gold(found) else ("reward", "gold"), strict=False):
                rise = [look[name] - found[0][name] for look in found]
                axes.plot(places, rise, "o-", color=colour, markersize=3.5, label=name)
        left.set(xlabel="step", title="rise of the reward" if _without_gold(found) else "rise of reward and gold")
        right.set(xlabel="√KL from the reference (nats)", title="the same by distance")
        if part is not None:
            left.axvline(part, color=BAD, linewidth=1, linestyle=(0, (4, 3)))
        left.legend(loc="upper left")
    said = "; ".join(f"step {look['step']:,}: reward {look['reward']:.3g}, gold {look['gold']:.3g}, KL "
                     f"{look['kl']:.3g}" for look in found)  # fmt: skip
    yield pictures.of(figure, f"Reward and gold on held-out prompts: {stage}", said)


def words(artifact: Artifact, found: Sequence[Look]) -> Iterator[str]:
    """By how much gold rose, whether reward and gold part, and where a step spent its time."""
    first, last = found[0], found[-1]
    kept = next((look for look in found if look["step"] == artifact.metrics.get("best_step")), last)
    what = "The reward that is trained on" if _without_gold(found) else "Gold"
    said = f"{what} changed by {_changed(first, last)} over {len(last['golds']):,} prompts."
    if kept is first and kept is not last:
        said += " Nothing that was learnt is kept: gold is highest before training, of what `gold.max_kl` allows."
    elif kept is not last:
        said += f" Kept is the policy after step {kept['step']:,}, of which it changed by {_changed(first, kept)}."
    if "win_rate" in last:
        said += f" Judged against those from before training, answers win {last['win_rate']:.0%} of {last['judged']}."
    part = looks.parting(found)
    yield said + (
        " No gold reward was given, so that nothing tells whether anything but the reward is served."
        if _without_gold(found)
        else " Reward and gold do not part." if part is None
        else f" From step {part:,} on reward rises and gold falls: what is learnt there serves the reward alone."
    )  # fmt: skip
    if lines := trace.read(artifact.store):
        parts = {name: median(line["times"].get(name, 0.0) for line in lines) for name in lines[-1]["times"]}
        each = ", ".join(f"{name} {seconds:.3g}" for name, seconds in parts.items())
        yield f"A step takes {median(line['seconds'] for line in lines):.3g} s in the median: {each}."


def _without_gold(found: Sequence[Look]) -> bool:
    """Whether what looks call gold is the reward that is trained on, for want of another."""
    return bool(found[0].get("gold_is_reward"))


def _changed(before: Look, after: Look) -> str:
    gain, low, high = looks.gain(before["golds"], after["golds"])
    return f"{gain:.3g} (95 % interval {low:.3g} to {high:.3g})"


def table(found: Sequence[Look]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Head and rows: the figures and probes of every look, a dash where it has none."""
    known = [name for name in COLUMNS if any(name in look for look in found)]
    return tuple(COLUMNS[name] for name in known), [tuple(look.get(name, "–") for name in known) for look in found]


def side_by_side(found: Sequence[Look]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of answers to the same prompts at the first, a middle and the last look."""
    shown = list(dict.fromkeys([0, len(found) // 2, len(found) - 1]))
    head = ("prompt", *(f"step {found[at]['step']:,}" for at in shown))
    count = min(len(found[at]["shown"]) for at in shown)
    rows = [
        (found[0]["shown"][row]["prompt"], *(found[at]["shown"][row]["completion"] for at in shown))
        for row in range(count)
    ]
    return head, rows
