"""The arithmetic of policy gradients, as pure functions of tensors.

Shapes: B samples, C places of a completion, P of a prompt, V tokens of the vocabulary. `mask` [B, C] is 1 at the
tokens of a completion and 0 at padding, which may stand on either side. Everything is computed in float32 or wider.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

Estimator = Literal["k1", "k2", "k3"]


def positions(attention: Tensor) -> Tensor:
    """Places of tokens in their own text [B, T], counted without padding; `attention` [B, T] is 0 at padding."""
    return (attention.long().cumsum(-1) - 1).clamp(min=0)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log p of each token [B, C]; `logits` [B, C, V] are those of the place before it, divided by `temperature`."""
    scaled = logits.float() / temperature if temperature != 1.0 else logits.float()
    # in one pass over the vocabulary, and one back
    return -functional.cross_entropy(scaled.flatten(0, -2), tokens.flatten(), reduction="none").view(tokens.shape)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of the distribution over the next token [B, C], of `logits` [B, C, V]."""
    logs = (logits.float() / temperature).log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def kl(logprobs: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """KL(policy, reference) at each token [B, C], estimated by tokens that the policy drew (Schulman 2020).

    With r = log p - log q: k1 is r, unbiased; k2 is r²/2, biased with little variance; k3 is exp(-r) - 1 + r,
    unbiased and never negative.
    """
    ratio = logprobs - reference
    if estimator == "k1":
        return ratio
    if estimator == "k2":
        return ratio.square() / 2
    return torch.expm1(-ratio) + ratio


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens of all samples; what padding holds does not count, not even if it is no number."""
    return values.where(mask.bool(), 0.0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of all samples; 0 where there is none."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def whitened(values: Tensor, mask: Tensor, *, centred: bool = True) -> Tensor:
    """Values with variance 1 over the tokens of all samples, and with mean 0 unless not `centred`; 0 at padding."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (scaled if centred else scaled + mean).where(mask.bool(), 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns [B, C] by generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438).

    An episode ends with the last token of a completion, after which the value is 0. Completions may have padding
    before and after them, not inside.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    following, value_after = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for at in reversed(range(rewards.shape[1])):
        surprise = rewards[:, at] + gamma * value_after - values[:, at]
        following = (surprise + gamma * lam * following) * mask[:, at]
        advantages[:, at], value_after = following, values[:, at]
    return advantages, (advantages + values) * mask


def to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Discounted sums of what is still to come [B, C], the reward at the token itself included."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[0]


def policy_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, low: float, high: float, weights: Tensor | None = None
) -> Tensor:
    """The clipped surrogate at each token [B, C] (Schulman et al. 2017, arXiv:1707.06347), to be made smaller.

    The ratio p / p_old is clipped to [1 - low, 1 + high]. `weights` correct for tokens that another policy drew.
    """
    ratio = (logprobs - old).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
    return loss if weights is None else loss * weights


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the larger squared error, at each token [B, C], of the value and of one within `clip` of the old value."""
    near = old + (values - old).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (near - returns).square()) / 2


def truncated_weights(logprobs: Tensor, behaviour: Tensor, cap: float) -> Tensor:
    """min(p / b, cap) at each token [B, C], for tokens that b drew, without a gradient (Ionides 2008).

    Capped, they are biased a little and their variance is bounded (Espeholt et al. 2018, arXiv:1802.01561).
    """
    return (logprobs - behaviour).exp().clamp(max=cap).detach()


def grouped(scores: Tensor, size: int) -> Tensor:
    """Scores [B] of samples, those of one prompt side by side, as [B / size, size]."""
    return scores.view(-1, size)


def group_relative(scores: Tensor, size: int, *, scaled: bool) -> Tensor:
    """Scores [B] less the mean of their group, and divided by its deviation if `scaled`.

    GRPO (Shao et al. 2024, arXiv:2402.03300); not scaled as Dr. GRPO (Liu et al. 2025, arXiv:2503.20783).
    """
    groups = grouped(scores, size)
    centred = groups - groups.mean(-1, keepdim=True)
    if scaled:
        centred = centred / (groups.std(-1, keepdim=True) + 1e-4)
    return centred.reshape(-1)


def leave_one_out(scores: Tensor, size: int) -> Tensor:
    """Scores [B] less the mean of the others of their group: RLOO (Ahmadian et al. 2024, arXiv:2402.14740)."""
    groups = grouped(scores, size)
    others = (groups.sum(-1, keepdim=True) - groups) / (size - 1)
    return (groups - others).reshape(-1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Share of the variance of returns that values foretell; 1 at best, 0 where returns do not vary."""
    held = mask.bool()
    spread = returns[held].var(unbiased=False)
    return float(1 - (returns - values)[held].var(unbiased=False) / spread) if spread > 0 else 0.0


def scalar(value: Any) -> float:
    """A tensor of one number, or a number, as a float."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
