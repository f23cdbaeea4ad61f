"""Weights that are kept on storage since they were the best so far. Light."""

from __future__ import annotations

from tilth.storage import Store
from tilth.train.job import BEST


def best_at(step: int) -> str:
    """Where the weights of a step lie that was the best so far."""
    return f"{BEST}/step-{step:08d}"


def keep_bests(store: Store, *steps: int) -> None:
    """Remove all but the weights of these steps: the best now, and the best as each of two checkpoints has it.

    The newest checkpoint may still be on its way: whoever resumes may take up that or the one before.
    """
    kept = {best_at(step) for step in steps}
    for name in store.list(BEST):
        if f"{BEST}/{name}" not in kept:
            store.remove(f"{BEST}/{name}")
