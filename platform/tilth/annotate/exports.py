"""What is made of the answers: preference pairs to learn from, and scores of every item."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from tilth.annotate.forms import TIE
from tilth.annotate.items import WORK
from tilth.annotate.judgements import Judgement
from tilth.annotate.quality import LABELS, Grid


@dataclass(frozen=True)
class Preference:
    """Two answers to a prompt, the better one first; with a `reason` it is no pair to learn from."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    root: str
    split: str
    reason: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def preferences(found: Sequence[Judgement], min_confidence: float = 0.5, min_margin: float = 0.25) -> list[Preference]:
    """Every pair that was compared, or whose answers were marked, with the reason where people do not decide it.

    Of comparisons the label is that of the votes weighed with competence, and its probability must be above
    min_confidence. Of marks the answers' mean standardised marks must differ by min_margin or more, and the answers
    themselves must differ.
    """
    work = [item for item in found if item.kind == WORK]
    if not work:
        return []
    return _compared(work, min_confidence) if work[0].pairwise else _marked(work, min_margin)


def _compared(work: Sequence[Judgement], least: float) -> list[Preference]:
    from tilth.annotate.agreement import competence

    grid = Grid.of(work)
    _, truth = competence(grid.labels(), grid.sides(), len(LABELS))
    by_item: dict[str, list[Judgement]] = defaultdict(list)
    for item in work:
        by_item[item.item].append(item)
    return [_pair(by_item[name], truth[at].tolist(), least) for at, name in enumerate(grid.items)]


def _pair(votes: Sequence[Judgement], truth: Sequence[float], least: float) -> Preference:
    first, (one, other) = votes[0], list(votes[0].answers)
    better, worse = (other, one) if truth[1] > truth[0] else (one, other)
    confidence = max(truth)
    reason = None
    if truth[2] == confidence:
        reason = f"tie: people find both equal with probability {confidence:.2f}"
    elif confidence <= least:
        reason = f"undecided: probability {confidence:.2f} is not above {least:g}"
    counts = Counter(vote.value["preferred"] for vote in votes)
    reasons = Counter(reason for vote in votes for reason in vote.value.get("reasons", ()))
    meta = {
        "votes": {name: counts[name] for name in (one, other, TIE)}, "people": len(votes),
        "confidence": round(confidence, 4), "chosen_model": better, "rejected_model": worse,
        **({"reasons": dict(reasons)} if reasons else {}),
    }  # fmt: skip
    chosen, rejected = first.answers[better], first.answers[worse]
    return Preference(first.item, first.prompt, chosen, rejected, first.root, first.split, reason, meta)


def _marked(work: Sequence[Judgement], margin: float) -> list[Preference]:
    """Pairs of answers to the same prompt, by their mean standardised marks."""
    marks = _standardised(work)
    answers: dict[tuple[str, str], dict[str, Judgement]] = defaultdict(dict)
    for item in work:
        answers[item.root, item.prompt][item.item] = item
    return [
        _better(one, other, marks, margin)
        for group in answers.values()
        for one, other in combinations(group.values(), 2)
    ]


def _better(one: Judgement, other: Judgement, marks: dict[str, float], margin: float) -> Preference:
    good, bad = (other, one) if marks[other.item] > marks[one.item] else (one, other)
    gap = marks[good.item] - marks[bad.item]
    (better, chosen), (worse, rejected) = next(iter(good.answers.items())), next(iter(bad.answers.items()))
    meta = {"margin": round(gap, 4), "chosen_model": better, "rejected_model": worse}
    reason = None
    if chosen.strip() == rejected.strip():
        reason = f"same: {better} and {worse} gave the same answer"
    elif gap < margin or gap == 0:
        reason = f"tie: standardised marks differ by {gap:.2f} < {margin:g}"
    name = f"{one.item}~{other.item}"
    return Preference(name, one.prompt, chosen, rejected, one.root, one.split, reason, meta)


def _standardised(work: Sequence[Judgement]) -> dict[str, float]:
    """Each item's mark, standardised by person and criterion, mean over both."""
    import numpy as np

    from tilth.annotate.agreement import standardised

    grid = Grid.of(work)
    criteria = dict.fromkeys(name for item in work for name in item.value["scores"])
    every = np.concatenate([standardised(grid.marks(name)) for name in criteria], axis=1)
    return dict(zip(grid.items, np.nanmean(every, axis=1).tolist(), strict=True))


def scores(found: Sequence[Judgement]) -> Iterator[dict[str, Any]]:
    """One line for each item: its models, how many people judged it, and what they said."""
    by_item: dict[str, list[Judgement]] = defaultdict(list)
    for item in found:
        if item.kind == WORK:
            by_item[item.item].append(item)
    pairs = {pair.id: pair for pair in preferences(found)} if found and found[0].pairwise else {}
    marks = {} if pairs else _standardised([i for group in by_item.values() for i in group]) if by_item else {}
    for name, group in by_item.items():
        line = {"item": name, "row": group[0].root, "models": list(group[0].answers), "people": len(group)}
        if name in pairs:
            yield line | pairs[name].meta
        else:
            criteria = dict.fromkeys(key for item in group for key in item.value["scores"])
            means = {
                key: _mean([i.value["scores"][key] for i in group if key in i.value["scores"]]) for key in criteria
            }
            yield line | {"scores": means, "standardised": round(marks[name], 4)}


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
