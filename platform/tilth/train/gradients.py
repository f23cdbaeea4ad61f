"""Several tasks' gradients made one: pure functions on flat gradients.

`gradients` is float (tasks, parameters), a row for each task; a row of zeros is a task that the step did not see, and
has no say. What comes back is (parameters,), on the scale of the sum of the rows, so that without a conflict every
remedy but CAGrad gives the plain gradient. `orders[i]` lists the tasks that task i is compared with, in that order.

Lengths and angles follow from the tasks' dot products, and what a remedy gives is a mix of the gradients: they are read
twice, however many tasks are compared. `products` (tasks, tasks) is float64, on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Orders = Sequence[Sequence[int]]
_ALMOST_ONE = 1 - 1e-6


def products(gradients: Tensor) -> Tensor:
    """Dot products of every two tasks' gradients."""
    return (gradients @ gradients.T).double().cpu()


def norms(products: Tensor) -> Tensor:
    """Euclidean norms (tasks,)."""
    return products.diagonal().sqrt()


def cosines(products: Tensor) -> Tensor:
    """Cosines between every two tasks (tasks, tasks), 0 where one of them was not seen."""
    lengths = norms(products)
    units = torch.where(lengths > 0, lengths, 1.0)
    return (products / units[:, None] / units).clamp(-1, 1)


def pcgrad(gradients: Tensor, orders: Orders) -> Tensor:
    """Sum of the gradients, each made orthogonal to those that it conflicts with, one after another.

    Yu et al. 2020, arXiv:2001.06782, algorithm 1.
    """
    dots = products(gradients)
    shares = torch.eye(len(dots), dtype=dots.dtype)  # each changed gradient as a mix of all
    for mine, order in zip(shares, orders, strict=True):
        for other in order:
            dot = mine @ dots[other]
            if dot < 0:
                mine[other] -= dot / dots[other, other]
    return _mixed(shares.sum(dim=0), gradients)


def masked(gradients: Tensor, agreement: float = 1.0) -> Tensor:
    """Sum of the gradients where their signs agree, 0 elsewhere.

    The AND-mask of Parascandolo et al. 2021, arXiv:2009.00329: a parameter is kept where |mean sign| ≥ `agreement`,
    the mean being over the tasks whose gradient there is not 0.
    """
    signs = gradients.sign()
    kept = signs.sum(dim=0).abs() >= agreement * signs.abs().sum(dim=0)
    return gradients.sum(dim=0) * kept


def gradvac(gradients: Tensor, orders: Orders, targets: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Sum of the gradients, each turned until its cosine with every other is at least their usual one.

    Wang et al. 2021, arXiv:2010.05874, algorithm 1. `targets` (tasks, tasks) are the usual cosines, moving averages
    with weight `beta` for the newest; returned beside the gradient as they are after this step. Targets of 0 that
    never move give PCGrad.
    """
    dots, targets = products(gradients), targets.double().cpu()
    shares, lengths = torch.eye(len(dots), dtype=dots.dtype), norms(dots)
    for i, order in enumerate(orders):
        for j in order:
            length = (shares[i] @ dots @ shares[i]).clamp(min=0).sqrt()
            if not (length > 0 and lengths[j] > 0):
                continue
            cosine = (shares[i] @ dots[j] / (length * lengths[j])).clamp(-1, 1)
            target = targets[i, j].clamp(-_ALMOST_ONE, _ALMOST_ONE)
            if cosine < target:
                across, wanted = (1 - cosine.square()).sqrt(), (1 - target.square()).sqrt()
                shares[i, j] += length * (target * across - cosine * wanted) / (lengths[j] * wanted)
            targets[i, j] = (1 - beta) * targets[i, j] + beta * cosine
    return _mixed(shares.sum(dim=0), gradients), targets


def cagrad(gradients: Tensor, c: float) -> Tensor:
    """The direction whose worst task improves most, within `c` times the mean gradient's norm of the mean gradient.

    Liu et al. 2021, arXiv:2110.14048, algorithm 1, times the number of tasks seen; c = 0 gives the plain gradient.
    """
    dots = products(gradients)
    seen = (dots.diagonal() > 0).nonzero()[:, 0]
    if len(seen) < 2:
        return gradients.sum(dim=0)
    shares = torch.zeros(len(dots), dtype=dots.dtype)
    shares[seen] = 1 / len(seen)
    weights = torch.zeros_like(shares)
    weights[seen] = torch.as_tensor(_worst_mix(dots[seen][:, seen], c), dtype=dots.dtype)
    if (length := (weights @ dots @ weights).clamp(min=0).sqrt()) > 0:
        shares += c * (shares @ dots @ shares).clamp(min=0).sqrt() / length * weights
    return _mixed(shares * len(seen), gradients)


def _mixed(shares: Tensor, gradients: Tensor) -> Tensor:
    mixed: Tensor = shares.to(gradients) @ gradients
    return mixed


def _worst_mix(dots: Tensor, c: float) -> Any:
    """Weights w of the simplex that minimise g_w · g_0 + c |g_0| |g_w|, from the tasks' dot products."""
    import numpy as np
    from scipy.optimize import minimize

    gram = dots.numpy()
    gram = gram / max(np.trace(gram), 1e-300)  # the answer does not depend on the scale, the solver does
    even = np.full(len(gram), 1 / len(gram))
    radius = c * np.sqrt(max(even @ gram @ even, 0.0))

    def gain(w: Any) -> float:
        return float(w @ gram @ even + radius * np.sqrt(max(w @ gram @ w, 0.0) + 1e-16))

    whole = {"type": "eq", "fun": lambda w: w.sum() - 1}
    found = minimize(gain, even, bounds=[(0, 1)] * len(gram), constraints=whole, method="SLSQP", tol=1e-10).x.clip(0)
    return found / found.sum()
