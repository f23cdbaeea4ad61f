"""How trials are run, as kinds. Light. Only what is known by the time that a trial is asked depends on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tilth.config import Component

if TYPE_CHECKING:
    from tilth.search.bench import Bench
    from tilth.search.trials import Trials


class Runner(Component, family="runner"):
    """Takes trials until there are none."""

    def run(self, trials: Trials, bench: Bench) -> None:
        """Ask `trials` for each, run it by `bench`, and tell what came of it."""
        raise TypeError(f"{type(self).__name__} must define run()")


class OneByOne(Runner):
    """One trial after another from this process, whose stages run where the recipe puts them.

    The same seed gives the same trials, also where the search was interrupted. Which of them a scheduler ends depends
    on when it looks, twice a second.
    """

    def run(self, trials: Trials, bench: Bench) -> None:
        from tilth.search.one_by_one import run

        run(trials, bench)


class Packed(Runner):
    """Trials of one training stage in packs: adapters of different rank, length, rate and seed share one pass of the
    model below them. What cannot share it is run by itself, and why is said.

    A pack is trained in this process, or on Ray Train workers where the stage asks for several, for nodes, or for GPUs
    that this process does not see; the cluster must have room for a trial's other stages beside it. Workers average
    the gradients of their adapters: these are small, and what DeepSpeed's stages 0 to 2 would divide of them is not
    worth it, so they are trained without; stage 3 and offload divide what all trials share and are run by themselves.

    `limit` counts what is done for a trial and in steps of the pack, not what is done for another trial between two.
    The time of a trial is that of its pack, so `seconds` of the searched stage is refused as an objective.
    """

    places: int = Field(8, ge=2, description="Trials in a pack at the same time, or fewer where memory is short.")

    def run(self, trials: Trials, bench: Bench) -> None:
        from tilth.search.packed import run

        run(trials, bench, self.places)


class Tune(Runner):
    """Several trials at once on Ray Tune, each in a process of its own that runs its stages on Ray Train.

    What a trial is asked depends on which others have finished by then.
    """

    at_once: int | None = Field(
        None, ge=1, description="Trials at the same time; null: as many as the cluster's CPUs and GPUs hold."
    )

    def run(self, trials: Trials, bench: Bench) -> None:
        from tilth.search.on_tune import run

        run(trials, bench, self.at_once)
