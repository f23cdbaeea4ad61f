"""What the algorithm is configured with, light: penalties, the shape of rewards, updates, watchers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tilth.config import EXECUTION, Component
from tilth.errors import Problem
from tilth.generate.judges import Judge
from tilth.train.ppo.advantages import Advantage, Gae
from tilth.train.rewards import Reward

Action = Literal["log", "raise_kl", "roll_back", "stop"]


class Kl(Component):
    """The price of a departure from the reference, the policy as it was before training.

    place: reward takes it from the reward at each token (Ziegler et al. 2019, arXiv:1909.08593), loss adds it to
    the loss (Shao et al. 2024, arXiv:2402.03300), where the gradient of k1 is zero on average; on the policy's own
    samples that of k2 is the gradient of the KL itself.
    """

    coefficient: float = Field(
        0.05, ge=0, description="What a nat costs, in units of the shaped reward; 0: nothing, until a detector asks."
    )
    target: float | None = Field(
        None, gt=0, description="KL of a completion, in nats, to steer the coefficient to; null: it stays fixed."
    )
    horizon: int = Field(10_000, ge=1, description="Samples over which the coefficient may move by a fifth.")
    estimator: Literal["k1", "k2", "k3"] = Field("k1", description="How KL is estimated from one token.")
    place: Literal["reward", "loss"] = Field("reward", description="Taken from the reward, or added to the loss.")

    def check(self) -> list[Problem]:
        if self.place == "loss" and self.estimator == "k1":
            what = "the gradient of k1 is zero on average, so that it would cost nothing"
            return [Problem("estimator", what, "use k3, or place: reward")]
        if self.target is not None and not self.coefficient:
            what = "steers the coefficient by factors, and it is 0"
            return [Problem("target", what, "set coefficient to more than 0, or leave target out")]
        return []


class Shaping(Component):
    """From what a reward says to what is learnt from."""

    normalise: bool = Field(False, description="Divide by the running standard deviation of all scores so far.")
    clip: float | None = Field(10.0, gt=0, description="Scores are clipped to ± this; null: not clipped.")
    missing_end: float = Field(1.0, ge=0, description="Taken from a completion that did not end of itself.")


class Algorithm(Component):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155).

    Details as in Huang et al. 2024 (arXiv:2403.17031) where nothing else is said.
    """

    advantage: Advantage = Field(Gae(), description="How a token's share of the reward is estimated.")
    kl: Kl = Field(Kl(), description="The price of a departure from the reference.")
    shaping: Shaping = Field(Shaping(), description="What is learnt of a score.")
    epochs: int = Field(4, ge=1, description="Passes over the samples of a step.")
    minibatches: int = Field(1, ge=1, description="Optimizer steps of a pass.")
    clip: float = Field(0.2, gt=0, lt=1, description="The ratio of probabilities is clipped to 1 - this below.")
    clip_above: float | None = Field(None, gt=0, description="And to 1 + this above; null: the same.")
    entropy: float = Field(0.0, ge=0, description="What a nat of entropy is worth in the loss.")
    stop_at_kl: float | None = Field(
        None, gt=0, description="End a step's updates once the policy is this far, in nats a token, from its start."
    )
    tokens_at_once: int = Field(
        4096, ge=16, json_schema_extra=EXECUTION, description="Tokens in a worker's micro-batch, padding included."
    )
    packing: bool | Literal["auto"] = Field(
        "auto",
        json_schema_extra=EXECUTION,
        description="Lay samples side by side in one row, so that hardly a token is padding; auto: where the model "
        "keeps them apart, which is measured.",
    )

    @property
    def high(self) -> float:
        """How far above 1 a ratio may be."""
        return self.clip if self.clip_above is None else self.clip_above


class Detector(Component):
    """A limit on one figure of a step, and what is done beyond it."""

    limit: float = Field(description="Beyond it the detector speaks.")
    action: Action = Field(
        "log",
        description="log; raise_kl: double the KL coefficient; roll_back: to the last checkpoint after which a step "
        "went well; stop.",
    )


class Watchers(Component):
    """What goes wrong in reinforcement learning, each with a limit and an action. Null: not looked for."""

    non_finite: Action = Field(
        "stop", description="A loss or gradient that is no finite number; such a score ends the stage."
    )
    kl: Detector | None = Field(
        Detector(limit=50.0, action="raise_kl"), description="KL of a completion from the reference, in nats."
    )
    entropy: Detector | None = Field(
        Detector(limit=0.02, action="log"), description="Entropy in nats a token, when it falls below."
    )
    value_loss: Detector | None = Field(
        Detector(limit=20.0, action="log"), description="Value loss by its median over the steps before."
    )
    ratio: Detector | None = Field(
        Detector(limit=20.0, action="log"), description="Largest ratio of a token's probability, new by old."
    )
    sync: float | None = Field(
        None,
        gt=0,
        description="Mean difference of learner and generator on the same samples, in nats a token, at which to stop; "
        "null: 0.005, or 0.05 where anything is computed in 16 bits or less.",
    )
    roll_backs: int = Field(3, ge=0, description="Times that a run may be rolled back before it stops.")

    @property
    def rolls_back(self) -> bool:
        """Whether a good state has to be kept at hand."""
        detectors = [item for item in (self.kl, self.entropy, self.value_loss, self.ratio) if item]
        return "roll_back" in (self.non_finite, *(item.action for item in detectors))


class Gold(Component):
    """How held-out prompts are looked at: by a reward that is never trained on (Gao et al. 2023, arXiv:2210.10760)."""

    reward: Reward | None = Field(None, description="Another measure of the same; null: the reward that is trained on.")
    judge: Judge | None = Field(
        None, description="Who compares the answers that are shown with those from before training: their win rate."
    )
    prompts: int = Field(64, ge=2, description="Held-out prompts that are answered at each look, always the same.")
    shown: int = Field(8, ge=0, description="Of these, answers that are kept for the report.")
    max_kl: float | None = Field(
        None,
        gt=0,
        description="KL of a completion, in nats, beyond which a policy is not taken for the best; null: twice the "
        "target of `algorithm.kl`, where it has one.",
    )

    def check(self) -> list[Problem]:
        if self.judge is not None and not self.shown:
            return [Problem("judge", "compares the answers that are shown, and `shown` is 0", "raise shown")]
        return []

    def bounded(self, kl: Kl) -> Gold:
        """The same with its bound, if there is one."""
        if self.max_kl is not None or kl.target is None:
            return self
        return self.model_copy(update={"max_kl": 2 * kl.target})
