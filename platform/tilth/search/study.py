"""Optuna's study of a search: in memory, and rebuilt from the trials' records whenever the search goes on.

Every trial is asked with a sampler of its own seed, so that what is asked follows from the seed, the trial's number and
what was told before, and not from how often the search was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tilth.search.space import Draws

if TYPE_CHECKING:
    from tilth.search.stage import Search
    from tilth.search.trials import Trial

_STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_NAME = "search"


class Study:
    """Asks, looks at trials on the way, and is told."""

    def __init__(self, search: Search) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.search = search
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=_NAME,
            directions=["maximize" if item.mode == "max" else "minimize" for item in search.objectives],
            pruner=search.scheduler.pruner() if search.scheduler else optuna.pruners.NopPruner(),
        )

    def restore(self, trials: Sequence[Trial]) -> None:
        """Take up trials in the order of their numbers."""
        for trial in trials:
            self._study.add_trial(self._frozen(trial))

    def _frozen(self, trial: Trial) -> FrozenTrial:
        complete = trial.state == "complete"
        return create_trial(
            state=_STATES[trial.state],
            values=self._values(trial) if complete else None,
            params=trial.params,
            distributions={name: json_to_distribution(text) for name, text in trial.distributions.items()},
            system_attrs=trial.marks,
            intermediate_values={step: self._signed(value) for step, value in trial.reported},
        )

    def _values(self, trial: Trial) -> list[float]:
        return [trial.scores[item.metric] for item in self.search.objectives]

    def _signed(self, value: float) -> float:
        """A figure on the way, turned so that it improves in the direction of the objective."""
        scheduler = self.search.scheduler
        return value if scheduler is None or scheduler.mode == self.search.mode else -value

    def ask(
        self, number: int, fixed: dict[str, Any] | None, draw: Callable[[Draws], dict[str, Any]]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
        """A trial's values, and the numbers and distributions behind them; `fixed` numbers are not drawn."""
        if fixed is not None:
            self._study.enqueue_trial(fixed)
        else:
            self._study.sampler = self.search.searcher.sampler(_seed(self.search.seed, number))
        trial = self._study.ask()
        values = draw(trial)
        return values, trial.params, {name: distribution_to_json(one) for name, one in trial.distributions.items()}

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Whether the trial goes on after this figure."""
        key = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
        self._storage.set_trial_intermediate_value(key, step, self._signed(value))
        ends = self._study.pruner.prune(self._study, self._storage.get_trial(key))
        trial.marks = dict(self._storage.get_trial(key).system_attrs)
        return not ends

    @property
    def _id(self) -> int:
        found: int = self._storage.get_study_id_from_name(_NAME)
        return found

    def tell(self, trial: Trial) -> None:
        values = self._values(trial) if trial.state == "complete" else None
        self._study.tell(trial.number, values, state=_STATES[trial.state])

    def importance(self) -> dict[str, float]:
        """How much of the variance of the first objective each drawn number explains, by itself and with others.

        Functional ANOVA over a forest (Hutter et al. 2014, ICML), of numbers that every complete trial has; empty where
        too few trials differ.
        """
        told = [trial.values[0] for trial in self._study.get_trials(states=(TrialState.COMPLETE,)) if trial.values]
        if len(told) < 4 or len(set(told)) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.search.seed)
        found = optuna.importance.get_param_importances(
            self._study, evaluator=evaluator, target=lambda trial: trial.values[0]
        )
        return {name: float(share) for name, share in found.items()}


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")
