"""Which rows are copies of others, and which have an id that is taken: found by sorting hashes, no row is looked up.

Of rows with the same key the first stays: test before validation before training, else in the order of reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilth.data.seen import Keys, Traits

#: what becomes of a row (uint8); those that are not in the sample have higher codes, one for each reason
KEPT, COPY, TWICE, RESERVED = range(4)
#: keys compared at once
BLOCK = 1 << 13
#: row number `row` has the id of row `first`; with `number` it has one of its own
NAMESAKE = np.dtype([("row", np.int64), ("first", np.int64), ("number", np.int64)])
#: row number `row` has the content of row `first`, whose split is given, and its label where that differs; else -1
COPIED = np.dtype([("row", np.int64), ("first", np.int64), ("split", np.int8), ("label", np.int32)])


class _Repeats(NamedTuple):
    """Rows whose key an earlier row has, those of one key together: the first with it, how many come between."""

    rows: NDArray[np.int64]
    first: NDArray[np.int64]
    between: NDArray[np.int64]


def compare(keys: Keys, traits: Traits, copies: bool) -> tuple[NDArray[np.uint8], NDArray[np.void], NDArray[np.void]]:
    """The fate of each row by its keys, the namesakes and, where `copies` are dropped, those; both ascend by row.

    Beside the keys it takes 15 bytes for each row, 8 of them what numpy sorts with.
    """
    fates = np.zeros(len(keys.names), np.uint8)
    rank = -np.maximum(traits.splits, 0)
    namesakes = _namesakes(keys, rank, fates)
    return fates, namesakes, _drop_copies(keys, traits, rank, fates) if copies else np.empty(0, COPIED)


def _namesakes(keys: Keys, rank: NDArray[np.int8], fates: NDArray[np.uint8]) -> NDArray[np.void]:
    """Rows whose id is taken; those that cannot have the id that they were given are marked in `fates`."""
    index = np.lexsort((rank, keys.names))
    found = _repeats(keys.names, index)
    numbers = _free(keys, found)
    fates[_of_others(keys, index)] = RESERVED
    fates[_of_renamed(keys, rank, found, numbers)] = RESERVED
    other = keys.contents[found.first] != keys.contents[found.rows]
    fates[found.rows] = np.where(other, TWICE, KEPT)
    return _table(NAMESAKE, row=found.rows, first=found.first, number=numbers)


def _drop_copies(keys: Keys, traits: Traits, rank: NDArray[np.int8], fates: NDArray[np.uint8]) -> NDArray[np.void]:
    """The rows whose content an earlier row has, marked in `fates`."""
    last = np.where(fates == KEPT, rank, 1)  # what is out already takes no other's place
    found = _repeats(keys.contents, np.lexsort((last, keys.contents)))
    kept = fates[found.rows] == KEPT
    rows, first = found.rows[kept], found.first[kept]
    fates[rows] = COPY
    labels = np.where(traits.labels[first] == traits.labels[rows], -1, traits.labels[first])
    return _table(COPIED, row=rows, first=first, split=traits.splits[first], label=labels)


def _repeats(keys: NDArray[np.bytes_], index: NDArray[np.int64]) -> _Repeats:
    """`index` puts the keys in order, and rows of one key in theirs."""
    same = np.zeros(len(index), bool)
    for start in range(1, len(index), BLOCK):
        stop = min(start + BLOCK, len(index))
        same[start:stop] = keys[index[start:stop]] == keys[index[start - 1 : stop - 1]]
    later = np.flatnonzero(same)
    begins = np.flatnonzero(np.diff(later, prepend=-1) != 1)
    lengths = np.diff(begins, append=len(later))
    between = np.arange(len(later)) - np.repeat(begins, lengths)
    return _Repeats(index[later], index[np.repeat(later[begins] - 1, lengths)], between)


def _free(keys: Keys, found: _Repeats) -> NDArray[np.int64]:
    """For each namesake a number from 2 on, such that no row is called NAME~NUMBER; in their order."""
    taken: dict[tuple[int, int], set[int]] = defaultdict(set)
    for group, link in _groups(keys, found, keys.numbered):
        taken[group].add(link["number"])
    numbers = found.between + 2
    for (low, high), used in taken.items():
        free_below = np.array(sorted(used)) - np.arange(len(used)) - 2
        numbers[low:high] += np.searchsorted(free_below, found.between[low:high], "right")
    return numbers


def _of_others(keys: Keys, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows that are called what one made from another row would be."""
    at = np.minimum(np.searchsorted(keys.names, keys.made["of"], sorter=index), len(index) - 1)
    rows: NDArray[np.int64] = keys.made["row"][keys.names[index[at]] == keys.made["of"]]
    return rows


def _of_renamed(keys: Keys, rank: NDArray[np.int8], found: _Repeats, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same where the other row comes earlier and has its id by its number."""
    rows = []
    for (low, high), link in _groups(keys, found, keys.renamed):
        at, row = low + np.searchsorted(numbers[low:high], link["number"]), link["row"]
        if at < high and numbers[at] == link["number"]:
            other = found.rows[at]
            rows += [row] if (rank[other], other) < (rank[row], row) else []
    return np.array(rows, np.int64)


def _groups(keys: Keys, found: _Repeats, links: NDArray[np.void]) -> Iterator[tuple[tuple[int, int], np.void]]:
    """Links to namesakes, each with where in `found` those of that name begin and end."""
    names = keys.names[found.rows]
    lows, highs = (np.searchsorted(names, links["of"], side) for side in ("left", "right"))
    for at in np.flatnonzero(lows < highs):
        yield (int(lows[at]), int(highs[at])), links[at]


def _table(kind: np.dtype[np.void], **columns: NDArray[np.generic]) -> NDArray[np.void]:
    """Columns as one array, ascending by row."""
    order = np.argsort(columns["row"])
    found = np.empty(len(order), kind)
    for name, column in columns.items():
        found[name] = column[order]
    return found
