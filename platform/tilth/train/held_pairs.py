"""What a reward model makes of held-out pairs: how often it is right, how well it knows that, and what length does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tilth.data.bootstrap import Floats, Statistic, correlation, interval, mean
from tilth.data.dataset import Dataset
from tilth.data.loading import Card
from tilth.train.job import Job
from tilth.train.reward import RewardTraining

BATCH_TOKENS = 4096
#: pairs that a bin of the calibration curve holds at least, and how many bins there are at most
_BIN, _BINS = 20, 10


@dataclass(frozen=True)
class JudgedPairs:
    """Scores [pairs, 2, members] of chosen and rejected, lengths [pairs, 2] of them in characters, ties [pairs]."""

    scores: Floats
    lengths: Floats
    ties: Any

    @property
    def lead(self) -> Floats:
        """By how much the mean score of chosen leads, [pairs]."""
        both: Floats = self.scores.mean(axis=2)
        return both[:, 0] - both[:, 1]

    @property
    def means(self) -> Floats:
        """What each member gives an answer on average, [members]."""
        found: Floats = self.scores.mean(axis=(0, 1))
        return found

    @property
    def longer(self) -> Floats:
        """By how many characters chosen is longer, [pairs]."""
        return self.lengths[:, 0] - self.lengths[:, 1]

    @property
    def slope(self) -> float:
        """Points of reward for each character by which one answer of a pair is longer: least squares through 0."""
        return self._slope(np.ones(len(self.lead), dtype=bool))

    def without_length(self) -> JudgedPairs:
        """The same with what length explains taken off every score, each half of the pairs by the slope of the other.

        So no pair is judged by what was learnt from it. Lengths at their mean lose nothing.
        """
        odd = np.arange(len(self.lead)) % 2 == 1
        slopes = np.where(odd, self._slope(~odd), self._slope(odd))
        excess = slopes[:, None] * (self.lengths - self.lengths.mean())
        return replace(self, scores=self.scores - excess[:, :, None])

    def _slope(self, pairs: Any) -> float:
        longer = self.longer[pairs]
        squares = float(longer @ longer)
        return float(self.lead[pairs] @ longer) / squares if squares else 0.0


def figures(job: Job, folder: Path) -> dict[str, Any]:
    """`pairs`: what the model in `folder` makes of the validation split; nothing where there is none.

    With `length_bias: regress_out` the correction is written to the model's card; the figures are those with it, no
    pair's by what was fitted to it.
    """
    stage = job.stage
    if not isinstance(stage, RewardTraining) or stage.validation is None:
        return {}
    judged = _judged(job, stage, folder, stage.validation.split)
    told = tell(judged)
    # what length explains is 0 on average, so that the members' means stay what they are without it
    means = tuple(map(float, judged.means)) if judged.scores.shape[2] > 1 else ()
    card = replace(Card.read(folder), member_means=means)
    if stage.length_bias == "regress_out":
        card = replace(card, length_slope=judged.slope, length_mean=float(judged.lengths.mean()))
        told = {**tell(judged.without_length()), "with_length": told["metrics"]}
    card.write(folder)
    return {"pairs": told}


def _judged(job: Job, stage: RewardTraining, folder: Path, split: str) -> JudgedPairs:
    from tilth.generate.engines.reward import RewardScorer

    rows = list(Dataset.open(job.data).split(split).rows())
    answers = [(row["prompt"], row[name]) for row in rows for name in ("chosen", "rejected")]
    found = RewardScorer(folder, BATCH_TOKENS)(answers)
    scores = np.array([item.members for item in found], dtype=np.float64)
    lengths = np.array([len(answer) for _, answer in answers], dtype=np.float64)
    ties = np.array([stage.better_of(row) != 1 for row in rows])
    return JudgedPairs(scores.reshape(len(rows), 2, -1), lengths.reshape(len(rows), 2), ties)


def tell(judged: JudgedPairs) -> dict[str, Any]:
    """`metrics` for the artifact, and what its report draws; of a tie neither side is right, only its length counts."""
    lead = judged.lead[~judged.ties]
    right = (lead > 0) + 0.5 * (lead == 0)
    curve = calibration(lead, right)
    told: dict[str, Any] = {"pairs": len(judged.lead), "ties": int(judged.ties.sum()), "calibration": curve}
    metrics = _three("held_out_accuracy", mean(right)) if len(lead) else {}
    if len(lead):
        metrics["calibration_error"] = calibration_error(curve)
    metrics |= _length(judged)
    both = judged.scores.mean(axis=2)
    told |= {"mean": float(both.mean()), "std": float(both.std()), "slope": judged.slope, **_longer(judged)}
    if judged.scores.shape[2] > 1:
        metrics["disagreement"] = float((judged.scores - judged.means).std(axis=2).mean())
        told["members"] = _members(judged, right)
    return {"metrics": metrics, **told}


def calibration(lead: Floats, right: Floats) -> list[dict[str, float]]:
    """Confidence, the model's own probability of the answer that it prefers, against how often it is right.

    Bins hold equally many pairs; `low` and `high` bound the accuracy of each (Wilson 1927, 95 %).
    """
    confidence = 1 / (1 + np.exp(-np.abs(lead)))
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, max(1, min(_BINS, len(order) // _BIN))) if len(order) else []
    return [
        {
            "confidence": float(confidence[part].mean()),
            "accuracy": float(right[part].mean()),
            "pairs": len(part),
            **_wilson(float(right[part].mean()), len(part)),
        }
        for part in parts
    ]


def calibration_error(curve: list[dict[str, float]]) -> float:
    """Mean distance between confidence and accuracy, a bin for as many pairs as it holds (Naeini et al. 2015)."""
    total = sum(part["pairs"] for part in curve)
    return sum(part["pairs"] * abs(part["confidence"] - part["accuracy"]) for part in curve) / total


def _wilson(share: float, count: int, z: float = 1.959964) -> dict[str, float]:
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * ((share * (1 - share) + z**2 / (4 * count)) / count) ** 0.5 / (1 + z**2 / count)
    return {"low": middle - half, "high": middle + half}


def _three(name: str, statistic: Statistic) -> dict[str, float]:
    found = interval(statistic)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _length(judged: JudgedPairs) -> dict[str, float]:
    """Pearson's correlations of reward and length: over all answers, and of their differences within a pair."""
    both = judged.scores.mean(axis=2)
    if not both.std() or not judged.lengths.std():
        return {}
    found = _three("length_correlation", correlation(judged.lengths, both))
    if judged.longer.std() and judged.lead.std():
        found |= _three("length_correlation_in_pairs", correlation(judged.longer[:, None], judged.lead[:, None]))
    return found


def _longer(judged: JudgedPairs) -> dict[str, float]:
    """How often people chose the longer answer, and how often the model does."""
    apart = (judged.longer != 0) & ~judged.ties
    if not apart.any():
        return {}
    agrees = np.sign(judged.lead[apart]) == np.sign(judged.longer[apart])
    return {"longer_chosen": float((judged.longer[apart] > 0).mean()), "longer_preferred": float(agrees.mean())}


def _members(judged: JudgedPairs, right: Floats) -> dict[str, Any]:
    """Accuracy of each member, the share of pairs on which they do not all agree, and the accuracy on either part."""
    leads = (judged.scores[:, 0] - judged.scores[:, 1])[~judged.ties]
    split = ~((leads > 0).all(axis=1) | (leads <= 0).all(axis=1))
    parts = {"agreed": right[~split], "split": right[split]}
    return {
        "accuracy": [float(value) for value in (leads > 0).mean(axis=0)],
        "split": float(split.mean()),
        **{f"accuracy_{name}": float(part.mean()) for name, part in parts.items() if len(part)},
    }


def cut(pairs: Any) -> int:
    """Of encoded pairs, those that lost the beginning of their prompt; rows without an id only fill up."""
    return sum(bool(row_id) and short for row_id, short in zip(pairs["id"], pairs["cut"], strict=True))
