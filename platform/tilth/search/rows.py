"""A training stage as its rows show it: what is asked how many trials fit into memory need not reckon with more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tilth.data.schema import PACKED, PAYLOADS
from tilth.errors import StageError, StorageError
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset
    from tilth.recipe import Stage
    from tilth.runs import Artifact

#: of ASCII, what is hardly ever more than one token; other characters are counted by their bytes
_PIECE = re.compile(r"[A-Za-z]{1,4}|[!-@\[-`{-~]")
#: tokens around a text that are none of its own; around a turn of a conversation, and before it, by its template
AROUND, TURN, SYSTEM = 2, 8, 64


def as_seen(stage: Stage, inputs: Mapping[str, Artifact]) -> Stage:
    """The stage with its objective settled, and `max_length` no longer than its longest row: only to size packs by."""
    trained: Any = stage
    data = inputs.get(str(getattr(stage, "data", None)))
    known = {"split", "max_length", "objective"} <= type(stage).model_fields.keys()
    if data is None or not known or not hasattr(stage, "objective_of"):
        return stage
    from tilth.data.dataset import Dataset

    try:
        dataset = Dataset.open(data)
        objective = trained.objective_of(dataset.row_type)
        return stage.model_copy(update={"objective": objective, **_length(trained, dataset, objective)})
    except (StageError, StorageError):  # which the stage says itself when it runs
        return stage


def _length(stage: Any, dataset: Dataset, objective: str) -> dict[str, int]:
    """The length to reckon with; nothing where rows fill up packs, or rows of another dataset are among them."""
    replayed = getattr(getattr(stage, "forgets", None), "replay", None)
    if getattr(stage, "pack_length", None) is not None or replayed or dataset.row_type == PACKED:
        return {}
    longest = _longest(dataset.store.url, stage.split, stage.max_length, objective == "classification")
    return {"max_length": max(2, min(stage.max_length, longest))}


@lru_cache(maxsize=256)
def _longest(url: str, split: str, most: int, classified: bool) -> int:
    """About how many tokens the longest row of a split has, rather too many than too few; no more than `most`."""
    from tilth.data.dataset import Dataset

    dataset = Dataset.open(Store.at(url)).split(split)
    columns = [name for name in PAYLOADS[dataset.row_type] if not (classified and name == "label")]
    longest = 0
    for row in (row for table in dataset.tables(columns) for row in table.to_pylist()):
        longest = max(longest, tokens(row.values()))
        if longest >= most:
            return most
    return longest


def tokens(values: Iterable[Any]) -> int:
    """At most so many tokens has a row of these values, or hardly any more; nothing is tokenised."""
    return AROUND + sum(_of(value) for value in values)


def _of(value: Any) -> int:
    if isinstance(value, str):
        others = len(value.encode("utf-8", "surrogatepass")) - len(value.encode("ascii", "ignore"))
        return AROUND + len(_PIECE.findall(value)) + others // 2
    if isinstance(value, list):
        turns = [item for item in value if isinstance(item, dict)]
        return sum(map(_of, value)) + (SYSTEM if turns else 0)
    return TURN + sum(map(_of, value.values())) if isinstance(value, dict) else 0
