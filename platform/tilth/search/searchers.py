"""Who decides what is tried next, as kinds. Light; Optuna's samplers are built when the search begins."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tilth.config import Component
from tilth.errors import Problem


class Searcher(Component, family="searcher"):
    """Suggests values from those that were tried and how they did."""

    @property
    def lists(self) -> bool:
        """Whether it takes the points of the space one after another, and asks no sampler."""
        return False

    def sampler(self, seed: int) -> Any:
        """A sampler of Optuna for one trial."""
        raise TypeError(f"{type(self).__name__} must define sampler()")


class Random(Searcher):
    """Independent draws (Bergstra & Bengio 2012, JMLR 13)."""

    def sampler(self, seed: int) -> Any:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


class Grid(Searcher):
    """Every point of a space of choices and integers, in the order in which they are written."""

    @property
    def lists(self) -> bool:
        return True


class Tpe(Searcher):
    """Tree-structured Parzen estimator (Bergstra et al. 2011, NIPS 24; as in Optuna, arXiv:2304.11127).

    With several objectives the multi-objective form (Ozaki et al. 2022, JAIR 73).
    """

    startup: int = Field(10, ge=1, description="Trials that are drawn at random before it models anything.")

    def sampler(self, seed: int) -> Any:
        import warnings

        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import TPESampler

        with warnings.catch_warnings():  # `group` has been there since 2021: it models fields that are not always there
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(seed=seed, n_startup_trials=self.startup, multivariate=True, group=True)


class Bohb(Searcher):
    """BOHB (Falkner et al. 2018, arXiv:1807.01774); refused, since its own library has not been kept since 2018."""

    def check(self) -> list[Problem]:
        what = "needs HpBandSter, which has had no release since 2018"
        mend = "its idea is TPE under Hyperband: write searcher: {kind: tpe}, scheduler: {kind: hyperband, most: STEPS}"
        return [Problem("", what, mend)]
