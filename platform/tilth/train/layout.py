"""Rows made ready for a trainer: replayed ones added, several laid in one sequence, the last batch filled up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets

from tilth.data.schema import PACKED
from tilth.train import packing
from tilth.train.forgetting import Replay
from tilth.train.independence import demand_independence
from tilth.train.retention import replayed

if TYPE_CHECKING:
    from tilth.train.objectives import Parts


def lay_out(trainer: Any, parts: Parts) -> None:
    """Add replayed rows, pack rows, and fill up to whole global batches, as far as the stage asks for it."""
    stage = parts.job.stage
    if replay := stage.forgets.replay:
        _replay(trainer, parts, replay)
    if length := stage.pack_length:
        _pack(trainer, parts, length)
    trainer.train_dataset = filled(trainer.train_dataset, stage.optimisation.global_batch)


def filled(rows: datasets.Dataset, multiple: int) -> datasets.Dataset:
    """`rows` and as many without an id as make a multiple of `multiple`, which carry no loss.

    So every worker has the same number of micro-batches and no row is repeated or left out in an epoch.
    """
    missing = -len(rows) % multiple
    if not missing:
        return rows
    nobody: dict[str, Any] = {"ids": []} if "ids" in rows.column_names else {"id": ""}
    blank = rows.select([0] * missing).map(lambda row: nobody, features=rows.features, desc="Filling up")
    return datasets.concatenate_datasets([rows, blank])


def _replay(trainer: Any, parts: Parts, replay: Replay) -> None:
    """Add general rows, prepared by TRL as the others are, to the rows that are learnt."""
    with trainer.args.main_process_first(local=True, desc="preparing replay"):
        rows = replayed(parts.job, replay, len(trainer.train_dataset), parts.folder)
        rows = trainer._prepare_dataset(rows, parts.tokenizer, trainer.args, False, None, "replay")
    both = [part.select_columns(["id", "input_ids", "labels"]) for part in (trainer.train_dataset, rows)]
    trainer.train_dataset = datasets.concatenate_datasets([both[0], both[1].cast(both[0].features)])


def _pack(trainer: Any, parts: Parts, length: int) -> None:
    """Put packs in the place of rows; rows of the validation split stay as they are."""
    demand_independence(trainer.model, parts.job.stage.model.name)
    with trainer.args.main_process_first(local=True, desc="packing"):
        key = f"{parts.job.fingerprint[:32]}-{length}"
        if parts.job.row_type == PACKED:
            file = parts.rows / f"{key}-gathered.arrow"
            trainer.train_dataset = packing.gathered(trainer.train_dataset, str(file), f"{key}-gathered")
        else:
            trainer.train_dataset = packing.pack(trainer.train_dataset, length, key)
    packs = packing.CollatePacks(parts.tokenizer.pad_token_id)
    trainer.data_collator = packing.EitherCollate(packs, trainer.data_collator)
