"""Who ends trials early that do worse than others did, as kinds. Light; Optuna's pruners decide."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tilth.config import Component
from tilth.errors import Problem


class Scheduler(Component, family="scheduler"):
    """Looks at what a trial's stage measures on the way; see `Stage.tells`."""

    metric: str = Field("validation_loss", description="The figure that trials are compared by while they run.")
    mode: Literal["min", "max"] = Field("min", description="Whether less of it is better, or more.")

    def pruner(self) -> Any:
        """A pruner of Optuna."""
        raise TypeError(f"{type(self).__name__} must define pruner()")


class Asha(Scheduler):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): at each rung the best 1 / factor go on."""

    grace: int = Field(1, ge=1, description="Steps that every trial runs: the first rung.")
    factor: int = Field(3, ge=2, description="Rungs lie so many times further apart; one in so many goes on.")

    def pruner(self) -> Any:
        from optuna.pruners import SuccessiveHalvingPruner

        return SuccessiveHalvingPruner(min_resource=self.grace, reduction_factor=self.factor)


class Median(Scheduler):
    """A trial ends that is worse than the median of the others at its step (Golovin et al. 2017, Vizier, KDD)."""

    grace: int = Field(0, ge=0, description="Steps that every trial runs.")
    startup: int = Field(5, ge=1, description="Trials that finish before any is ended.")

    def pruner(self) -> Any:
        from optuna.pruners import MedianPruner

        return MedianPruner(n_startup_trials=self.startup, n_warmup_steps=self.grace)


class Hyperband(Scheduler):
    """Successive halving with several first rungs at once (Li et al. 2018, arXiv:1603.06560).

    With `tpe` it is near to BOHB, which models each budget apart where tpe models all trials together.
    """

    grace: int = Field(1, ge=1, description="Steps of the lowest first rung.")
    most: int = Field(ge=2, description="Steps of a whole trial.")
    factor: int = Field(3, ge=2, description="Rungs lie so many times further apart; one in so many goes on.")

    def pruner(self) -> Any:
        from optuna.pruners import HyperbandPruner

        return HyperbandPruner(min_resource=self.grace, max_resource=self.most, reduction_factor=self.factor)

    def check(self) -> list[Problem]:
        if self.most < self.grace * self.factor:
            return [Problem("most", f"leaves one rung, {self.grace}", f"use {self.grace * self.factor} or more")]
        return []


class Pbt(Scheduler):
    """Population based training (Jaderberg et al. 2017, arXiv:1711.09846); refused.

    A trial would go on from another's weights with other values. What it ends with then follows from no recipe:
    neither a fingerprint nor a second run could give that model again.
    """

    def check(self) -> list[Problem]:
        what = (
            "would go on from another trial's weights: Tune has no checkpoint of a trainer of Ray Train to hand over, "
            "and no recipe would give the model that is left"
        )
        return [Problem("", what, "use asha, hyperband or median, and search optimisation.scheduler and warmup")]
