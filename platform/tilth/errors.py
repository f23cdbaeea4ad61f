"""What can go wrong, as a tree. Every message states the rule, the value and the way out.

TilthError
├── RecipeError     the recipe is wrong; nothing was started            exit code 2
├── StageError      a stage failed; what was finished before it stays   exit code 1
│   ├── QuarantineError   more rows were unreadable than the recipe allows
│   └── StageStopped      a stage was asked to end before its time
├── StorageError    a directory or object store refused or is damaged   exit code 1
│   └── RunLocked   another run holds this directory
├── ClusterError    a cluster does not answer, or cannot do this        exit code 1
├── TimeLimitError  a job's time is over; what was finished stays       exit code 124
└── ModelError      a model cannot be found, fetched or verified        exit code 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class TilthError(Exception):
    """Base of every error that Tilth raises on purpose."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One fault of a recipe: where (a dotted path), what is wrong and how to mend it."""

    where: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.mend}" if self.mend else "")


class RecipeError(TilthError):
    """The recipe does not hold; carries every problem found, not the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = [Problem("recipe", problems)] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(map(str, self.problems)))


class StageError(TilthError):
    """A stage failed while it ran."""


class QuarantineError(StageError):
    """More rows were unreadable or poisonous than `max_quarantined` allows."""


class StageStopped(StageError):  # noqa: N818 - states what happened, at the wish of who ran the stage
    """A stage was asked to end before its time, and did."""


class StorageError(TilthError):
    """A file, directory or object could not be read, written or verified."""


class RunLocked(StorageError):  # noqa: N818 - states the condition, as FileExistsError does
    """Another live run holds the run directory."""


class ClusterError(TilthError):
    """A Ray cluster does not answer, refuses, or has not what a stage needs."""


class TimeLimitError(TilthError):
    """A job's time limit is over; what it finished stays, and the next attempt goes on from there."""

    exit_code = 124


class ModelError(TilthError):
    """A model could not be found, fetched or verified."""
