"""Looks at held-out prompts: gold reward, the reward that is trained on, KL, probes, and answers to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilth.data.schema import row_seed
from tilth.generate.drafts import user
from tilth.generate.judges import Contest, JudgeFunction
from tilth.train.ppo.experience import apart
from tilth.train.ppo.learner import Learner, Score
from tilth.train.ppo.looks import Look
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
    judge: JudgeFunction | None = None

    def look(self, learner: Learner, step: int, before: Look | None = None) -> dict[str, Any]:
        """What the policy answers after `step` steps. The same random numbers each time, so that looks are paired.

        `before` is the look at the policy before training, None if this is it; rank 0 has the judge compare with it.
        """
        wanted = asks(self.prompts, 1, self.seed, "held out")
        learner.sync()
        mine = learner.generating.generate(learner.ranks.share(wanted))
        by_row = {prompt.row["id"]: prompt for prompt in self.prompts}
        rewards = learner.scored(mine, by_row, learner.scorers.reward)
        golds = rewards if self.gold is None else learner.scored(mine, by_row, self.gold)
        doubts = self._disagreement(learner, mine, by_row)
        told = learner.ranks.together(list(zip(mine, rewards, golds, doubts, strict=True)))
        samples = [sample for sample, *_ in told]
        seen = learner.seen(samples)
        texts = [learner.text(sample) for sample in samples]
        found: dict[str, Any] = {
            "step": step,
            **apart(seen, learner.settings.tolerance),
            "reward": _mean([reward for _, reward, *_ in told]),
            "gold": _mean([gold for _, _, gold, _ in told]),
            "kl": float(seen.kl.mean()),
            "entropy": float((seen.entropy * seen.mask).sum() / seen.mask.sum()),
            "ended": _mean([float(sample.ended) for sample in samples]),
            **probes(texts),
            "rewards": [reward for _, reward, *_ in told],
            "golds": [gold for _, _, gold, _ in told],
            "shown": self._shown(told, texts),
            "gold_is_reward": self.gold is None,
        }
        if told[0][3] is not None:
            found["disagreement"] = _mean([item[3] or 0.0 for item in told])
        return {**found, **self._compared(before, found["shown"])} if learner.ranks.rank == 0 else found

    def _compared(self, before: Look | None, shown: Sequence[Look]) -> dict[str, float]:
        """Share of the answers shown that beat those from before training, a tie as half; and how many were judged."""
        if self.judge is None or before is None:
            return {}
        contests = [
            Contest(
                user(then["prompt"]),
                (then["completion"], now["completion"]),
                row_seed(self.seed, then["row"], "win rate"),
            )
            for then, now in zip(before["shown"], shown, strict=True)
        ]
        wins = [rate for item in self.judge(contests) if (rate := item.win_rate()) is not None]
        return {"judged": len(wins), **({"win_rate": _mean(wins)} if wins else {})}

    def _disagreement(
        self, learner: Learner, samples: Sequence[Sample], by_row: dict[str, Prompt]
    ) -> Sequence[float | None]:
        asked = [by_row[sample.ask.row] for sample in samples]
        texts = [learner.text(sample) for sample in samples]
        found = disagreement(learner.scorers.reward, [p.text for p in asked], texts, [p.row for p in asked])
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
