"""From the answers of people to the rows, books and metrics of the stage `feedback`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilth.annotate.exports import Preference, preferences
from tilth.annotate.judgements import Judgement, from_place
from tilth.annotate.quality import figures
from tilth.data.finish import finish
from tilth.data.ledger import Tally
from tilth.data.schema import Row, original, to_table
from tilth.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from tilth.annotate.stage import Feedback
    from tilth.data.dataset import Dataset
    from tilth.runs import Out


@dataclass(frozen=True)
class Judged:
    """The pairs that people decided, and all figures of how."""

    preferences: Sequence[Preference]
    figures: dict[str, Any]
    excluded: int

    @staticmethod
    def of(stage: Feedback) -> Judged:
        """What the stage's place of answers holds, without those who failed their checks."""
        found = from_place(stage.answers)
        failed = _inattentive(found, stage.max_failed)
        kept = [item for item in found if item.person not in failed]
        pairs = preferences(kept, stage.min_confidence, stage.min_margin)
        return Judged(pairs, figures(kept), len(failed))

    @property
    def metrics(self) -> dict[str, Any]:
        """The headline figures: people, pairs, agreement, and each model's share or marks."""
        found: dict[str, Any] = {"people": len(self.figures["people"]), "people_excluded": self.excluded}
        found |= {"answers": self.figures["answers"], "pairs": sum(p.reason is None for p in self.preferences)}
        for line in self.figures["agreement"]:
            if line["figure"].startswith("Krippendorff") and line["value"] is not None:
                ends = {"": "value", "_low": "low", "_high": "high"}
                found |= {f"{line['of']}/alpha{end}": line[at] for end, at in ends.items() if line[at] is not None}
        for line in self.figures["models"]:
            name = f"{line['model']}/{line['of']}"
            found |= {name: line["value"], f"{name}_low": line["low"], f"{name}_high": line["high"]}
        return found


def _inattentive(found: Sequence[Judgement], most: float) -> set[int]:
    """Who failed a larger share of their checks."""
    checks: dict[int, list[bool]] = {}
    for item in found:
        if item.passed is not None:
            checks.setdefault(item.person, []).append(item.passed)
    return {person for person, passed in checks.items() if passed.count(False) / len(passed) > most}


def row_of(pair: Preference) -> Row:
    """A preference as a row: its root is the row that was judged."""
    payload = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    return {**original(pair.id, pair.split, payload, pair.meta), "root": pair.root, "reason": pair.reason}


@dataclass
class _Pairs:
    """The books of one small dataset, see `tilth.data.finish.Books`."""

    store: Store
    rows: Sequence[Row]

    def tables(self) -> Iterator[pa.Table]:
        yield to_table(self.rows, "preference")

    def tally(self) -> Tally:
        kept = sum(row["reason"] is None for row in self.rows)
        return Tally(inputs=len(self.rows), accepted=kept, filtered=len(self.rows) - kept)

    def clear(self) -> None:
        pass


def write(out: Out, pairs: Sequence[Preference]) -> Dataset:
    """The dataset of the pairs."""
    return finish(_Pairs(out.store, [row_of(pair) for pair in pairs]), "preference")
