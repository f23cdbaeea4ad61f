"""Weights that are kept on storage since they were the best so far. Light."""

from __future__ import annotations

from tilth.storage import Store
from tilth.train.job import BEST


def best_at(step: int) -> str:
    """Where the weights of a step lie that was the best so far."""
    return f"{BEST}/step-{step:08d}"


def keep_bests(store: Store, *steps: int | None) -> None:
    """Remove all but the weights of these steps: the best now, and the best as the checkpoint before has it.

    The newest checkpoint may still be on its way: whoever resumes may take up either.
    """
    kept = {best_at(step) for step in steps if step is not None}
    for name in store.list(BEST):
        if f"{BEST}/{name}" not in kept:
            store.remove(f"{BEST}/{name}")
