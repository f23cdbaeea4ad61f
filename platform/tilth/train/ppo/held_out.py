"""Looks at held-out prompts: gold reward, the reward that is trained on, KL, probes, and answers to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilth.train.ppo.learner import Learner, Score
from tilth.train.ppo.probes import probes
from tilth.train.ppo.prompts import Prompt, asks
from tilth.train.ppo.rollouts import Sample
from tilth.train.rewards import disagreement


@dataclass(frozen=True)
class HeldOut:
    """Prompts that are never trained on, and a reward that is not either; without it gold is the reward itself."""

    prompts: Sequence[Prompt]
    gold: Score | None
    shown: int
    seed: int

    def look(self, learner: Learner, step: int) -> dict[str, Any]:
        """What the policy answers after `step` steps. The same random numbers each time, so that looks are paired."""
        wanted = asks(self.prompts, 1, self.seed, "held out")
        learner.generating.sync()
        mine = learner.generating.generate(learner.ranks.share(wanted))
        by_row = {prompt.row["id"]: prompt for prompt in self.prompts}
        rewards = learner.scored(mine, by_row, learner.score)
        golds = rewards if self.gold is None else learner.scored(mine, by_row, self.gold)
        apart = self._disagreement(learner, mine, by_row)
        told = learner.ranks.together(list(zip(mine, rewards, golds, apart, strict=True)))
        samples = [sample for sample, *_ in told]
        seen = learner.examined(samples, [reward for _, reward, *_ in told])
        kl = ((seen.old - seen.reference) * seen.mask).sum(-1)
        texts = [learner.text(sample) for sample in samples]
        found = {
            "step": step,
            "reward": _mean([reward for _, reward, *_ in told]),
            "gold": _mean([gold for _, _, gold, _ in told]),
            "kl": float(kl.mean()),
            "entropy": float((seen.entropy * seen.mask).sum() / seen.mask.sum()),
            "ended": _mean([float(sample.ended) for sample in samples]),
            **probes(texts),
            "rewards": [reward for _, reward, *_ in told],
            "golds": [gold for _, _, gold, _ in told],
            "shown": self._shown(told, texts),
        }
        return found if told[0][3] is None else {**found, "disagreement": _mean([item[3] or 0.0 for item in told])}

    def _disagreement(
        self, learner: Learner, samples: Sequence[Sample], by_row: dict[str, Prompt]
    ) -> Sequence[float | None]:
        asked = [by_row[sample.ask.row] for sample in samples]
        texts = [learner.text(sample) for sample in samples]
        found = disagreement(learner.score, [p.text for p in asked], texts, [p.row for p in asked])
        return [None] * len(samples) if found is None else found

    def _shown(self, told: Sequence[tuple[Any, ...]], texts: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {"row": sample.ask.row, "prompt": prompt.text, "completion": text, "reward": reward, "gold": gold}
            for (sample, reward, gold, _), text, prompt in list(zip(told, texts, self.prompts, strict=True))[
                : self.shown
            ]
        ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
