"""Gradient surgery, against examples worked out by hand and against slow, obvious references."""

from __future__ import annotations

from itertools import product
from random import Random

import numpy as np
import pytest
import torch

from tilth.train.conflict import Conflict, Unresolved
from tilth.train.gradients import cagrad, cosines, gradvac, masked, norms, pcgrad, products
from tilth.train.remedies import CaGrad, GradVac, Masking, PcGrad

BOTH = [[1], [0]]
KINDS: list[Conflict] = [Unresolved(), PcGrad(), Masking(), GradVac(), CaGrad(c=0)]
# g1 · g2 = -2, |g1|² = 4, |g2|² = 2
CONFLICT = torch.tensor([[2.0, 0.0, 0.0], [-1.0, 1.0, 0.0]])


def drawn(seed: int, tasks: int = 4, size: int = 6) -> torch.Tensor:
    return torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pcgrad_by_hand() -> None:
    # g1' = g1 + 2/2 g2 = (1, 1, 0); g2' = g2 + 2/4 g1 = (0, 1, 0)
    assert pcgrad(CONFLICT, BOTH).tolist() == [1, 2, 0]


def test_masking_by_hand() -> None:
    # the first parameter is pulled both ways; a gradient of 0 disagrees with nobody
    assert masked(CONFLICT).tolist() == [0, 1, 0]
    three = torch.tensor([[1.0, 1.0], [1.0, 2.0], [-1.0, 3.0]])
    assert masked(three).tolist() == [0, 6]
    assert masked(three, agreement=0.33).tolist() == [1, 6]


def test_gradvac_by_hand() -> None:
    # of two unit vectors at a right angle, each is turned to 60 degrees from the other: g + g_other / √3
    units = torch.eye(2, dtype=torch.float64)
    combined, targets = gradvac(units, BOTH, torch.full((2, 2), 0.5, dtype=torch.float64), beta=0.5)
    assert combined.tolist() == pytest.approx([1 + 3**-0.5] * 2)
    assert targets[0, 1].item() == targets[1, 0].item() == 0.25


def test_cagrad_by_hand() -> None:
    # two opposed gradients on one axis and one shared: by symmetry w = (1/2, 1/2), d = (1 + c) g0, times two tasks
    mirrored = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    assert cagrad(mirrored, 0.5).tolist() == pytest.approx([0, 3], abs=1e-4)


def test_cosines_and_norms_by_hand() -> None:
    found = cosines(products(torch.cat([CONFLICT, torch.zeros(1, 3)])))
    assert found[0].tolist() == pytest.approx([1, -(0.5**0.5), 0])
    assert norms(products(CONFLICT)).tolist() == pytest.approx([2, 2**0.5])


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_as_the_paper_writes_it(seed: int) -> None:
    gradients = drawn(seed)
    rng = Random(seed)
    orders = [rng.sample([j for j in range(4) if j != i], 3) for i in range(4)]
    total = np.zeros(6)
    for i, order in enumerate(orders):
        g = gradients[i].numpy().copy()
        for j in order:
            h = gradients[j].numpy()
            if float(np.dot(g, h)) < 0:
                g = g - np.dot(g, h) / np.linalg.norm(h) ** 2 * h
        total += g
    assert pcgrad(gradients, orders).numpy() == pytest.approx(total)


@pytest.mark.parametrize("seed", range(5))
def test_gradvac_reaches_the_cosine_that_it_aims_at(seed: int) -> None:
    pair = drawn(seed, tasks=2)
    target = cosines(products(pair))[0, 1] + 0.3
    targets = torch.full((2, 2), float(target), dtype=torch.float64)
    total, _ = gradvac(pair, [[1], []], targets, beta=0.1)
    assert cosines(products(torch.stack([total - pair[1], pair[1]])))[0, 1] == pytest.approx(target)


def test_gradvac_without_a_usual_cosine_is_pcgrad() -> None:
    gradients, orders = drawn(3), [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    combined, targets = gradvac(gradients, orders, torch.zeros(4, 4, dtype=torch.float64), beta=0.0)
    assert combined.numpy() == pytest.approx(pcgrad(gradients, orders).numpy())
    assert not targets.any()


@pytest.mark.parametrize("seed", range(4))
def test_cagrad_helps_the_worst_task_as_much_as_a_search_can(seed: int) -> None:
    gradients, c = drawn(seed, tasks=3, size=3), 0.6
    mean = gradients.mean(dim=0)
    radius = c * mean.norm()
    found = cagrad(gradients, c) / 3
    assert (found - mean).norm() <= radius * (1 + 1e-6)
    # every direction of a fine net on the ball around the mean gradient
    angles = [
        (np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t))
        for t, p in product(np.linspace(0, np.pi, 90), np.linspace(0, 2 * np.pi, 180))
    ]
    ball = mean + radius * torch.tensor(np.array(angles))
    best = (ball @ gradients.T).min(dim=1).values.max()
    assert (gradients @ found).min() >= best - 1e-6


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_without_a_conflict_the_gradient_is_the_plain_one(kind: Conflict) -> None:
    together = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.5, 1.0]])
    combined, _ = kind.combine(together, Random(0), kind.start(2))
    assert combined.tolist() == pytest.approx([4, 2.5, 1], abs=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, CaGrad()], ids=str)
def test_a_task_that_was_not_seen_has_no_say(kind: Conflict) -> None:
    absent = torch.stack([CONFLICT[0], torch.zeros(3), CONFLICT[1]])
    two, _ = kind.combine(CONFLICT, Random(0), kind.start(2))
    three, _ = kind.combine(absent, Random(0), kind.start(3))
    assert three.tolist() == pytest.approx(two.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", [PcGrad(), Masking()], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("seed", range(5))
def test_of_two_conflicting_tasks_neither_gets_worse(kind: Conflict, seed: int) -> None:
    first = drawn(seed, tasks=1)[0]
    pair = torch.stack([first, drawn(seed + 50, tasks=1)[0] - 1.5 * first])
    assert pair[0] @ pair[1] < 0
    combined, _ = kind.combine(pair, Random(0), kind.start(2))
    assert (pair @ combined).min() >= -1e-12
