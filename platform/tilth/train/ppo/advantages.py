"""What a token is credited with: generalised advantages with a critic, or baselines without one. Light configs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tilth.config import Component, ModelRef

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Credit:
    """What advantages are made of: shaped `scores` [B], the KL `penalty` [B, C] of each token, `values`, `mask`."""

    scores: Tensor
    penalty: Tensor
    mask: Tensor
    values: Tensor | None = None

    def rewards(self) -> Tensor:
        """The penalty of each token, and at the last one of a completion its score besides [B, C]."""
        # with padding on the right alone, the last token is the one before the count
        last = (self.mask.sum(-1).long() - 1).clamp(min=0)
        rewards = -self.penalty * self.mask
        return rewards.scatter_add(1, last.unsqueeze(1), self.scores.to(rewards).unsqueeze(1))

    def totals(self) -> Tensor:
        """The score of each completion less the penalty of all its tokens [B]."""
        return self.scores - (self.penalty * self.mask).sum(-1)


class Critic(Component):
    """Foretells the reward at each token.

    trunk: shared reads the policy's last hidden states, so that it costs next to nothing; separate is a second
    model, adapted as the policy is.
    """

    trunk: Literal["shared", "separate"] = Field("shared", description="On the policy's own layers, or on its own.")
    model: ModelRef | None = Field(None, description="What a separate critic begins as; null: as the policy does.")
    coefficient: float = Field(0.1, gt=0, description="Weight of the value loss beside the policy's.")
    clip: float = Field(0.2, gt=0, description="Values move at most so far in a step without the loss noticing.")


class Advantage(Component, family="advantage"):
    """How a token's share of the reward is estimated. A kind writes `estimate`."""

    @property
    def samples(self) -> int:
        """Completions of each prompt."""
        return 1

    @property
    def critic(self) -> Critic | None:
        """The critic, where values are needed."""
        return None

    def estimate(self, credit: Credit) -> tuple[Tensor, Tensor | None]:
        """Advantages [B, C], and what the critic should have said [B, C]; samples of a prompt stand side by side."""
        raise TypeError(f"{type(self).__name__} must define estimate()")


class Gae(Advantage):
    """Generalised advantage estimation with a critic (Schulman et al. 2016, arXiv:1506.02438): PPO as first given."""

    gamma: float = Field(1.0, gt=0, le=1, description="Worth of a reward one token later.")
    lam: float = Field(0.95, ge=0, le=1, description="1: rewards as they came; 0: as the critic foretells them.")
    whiten: bool = Field(True, description="Advantages with mean 0 and variance 1 over a step's tokens.")
    value: Critic = Field(Critic(), description="The critic.")

    @property
    def critic(self) -> Critic:
        return self.value

    def estimate(self, credit: Credit) -> tuple[Tensor, Tensor | None]:
        from tilth.train.ppo.maths import gae, whitened

        if credit.values is None:
            raise TypeError("generalised advantages need values")
        advantages, returns = gae(credit.rewards(), credit.values, credit.mask, self.gamma, self.lam)
        return (whitened(advantages, credit.mask) if self.whiten else advantages), returns


class Grouped(Advantage, family="advantage"):
    """Baselines from several completions of the same prompt."""

    size: int = Field(4, ge=2, description="Completions of each prompt.")

    @property
    def samples(self) -> int:
        return self.size


class Grpo(Grouped):
    """Group-relative advantages (Shao et al. 2024, arXiv:2402.03300); they want the KL in the loss.

    Losses are averaged over the tokens of a minibatch, as in DAPO (Yu et al. 2025, arXiv:2503.14476), so that a long
    completion counts for more than a short one; in the paper each counts alike.
    """

    scale: Literal["deviation", "none"] = Field(
        "deviation", description="Divide by the group's deviation, or not (Dr. GRPO, arXiv:2503.20783)."
    )

    def estimate(self, credit: Credit) -> tuple[Tensor, Tensor | None]:
        from tilth.train.ppo.maths import group_relative

        return _spread(group_relative(credit.totals(), self.size, scaled=self.scale == "deviation"), credit), None


class Rloo(Grouped):
    """Each completion against the mean of the others (Ahmadian et al. 2024, arXiv:2402.14740)."""

    def estimate(self, credit: Credit) -> tuple[Tensor, Tensor | None]:
        from tilth.train.ppo.maths import leave_one_out

        return _spread(leave_one_out(credit.totals(), self.size), credit), None


class ReinforcePlusPlus(Advantage):
    """Rewards still to come, whitened over the whole batch (Hu 2025, arXiv:2501.03262)."""

    gamma: float = Field(1.0, gt=0, le=1, description="Worth of a reward one token later.")
    per_prompt: int = Field(1, ge=1, description="Completions of each prompt.")

    @property
    def samples(self) -> int:
        return self.per_prompt

    def estimate(self, credit: Credit) -> tuple[Tensor, Tensor | None]:
        from tilth.train.ppo.maths import to_go, whitened

        return whitened(to_go(credit.rewards(), credit.mask, self.gamma), credit.mask), None


def _spread(each: Any, credit: Credit) -> Any:
    """The same for all tokens of a completion [B, C]."""
    return each.unsqueeze(1) * credit.mask
