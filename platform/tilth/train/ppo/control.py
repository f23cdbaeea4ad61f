"""How much a departure from the reference costs: fixed, or steered towards a target."""

from __future__ import annotations

from dataclasses import dataclass

#: what a coefficient of 0 is raised from, and how many times the one that was given it is raised to at most
LEAST, MOST = 0.01, 100.0


@dataclass
class Controller:
    """The KL coefficient. With a `target`, proportional control (Ziegler et al. 2019, arXiv:1909.08593, section 2.2).

    After n samples whose mean KL of a whole completion was k, it grows by the factor
    1 + clip(k / target - 1, -0.2, 0.2) · n / horizon.
    """

    coefficient: float
    target: float | None = None
    horizon: int = 10_000
    #: the coefficient that was given
    given: float | None = None

    def __post_init__(self) -> None:
        if self.given is None:
            self.given = self.coefficient

    def update(self, kl: float, samples: int) -> None:
        """Take note of the mean KL, in nats for each completion, of so many samples."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * samples / self.horizon

    def raise_by(self, factor: float) -> None:
        """Make departures dearer at once, also where they cost nothing so far, but not without end."""
        dearest = MOST * max(self.given or 0.0, LEAST)
        self.coefficient = max(self.coefficient, min(max(self.coefficient, LEAST) * factor, dearest))


@dataclass
class Moments:
    """Running mean and variance of scores (Welford 1962, in the form of Chan et al. 1979 for batches)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: list[float]) -> None:
        """Take note of a batch."""
        if not values:
            return
        size, mean = len(values), sum(values) / len(values)
        total, gap = self.count + size, mean - self.mean
        self.squares += sum((value - mean) ** 2 for value in values) + gap**2 * self.count * size / total
        self.mean += gap * size / total
        self.count = total

    @property
    def deviation(self) -> float:
        """The standard deviation; 1 before two values differ."""
        return (self.squares / self.count) ** 0.5 if self.count > 1 and self.squares > 0 else 1.0
