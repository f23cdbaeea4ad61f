"""How many rows of each split stage `data` will leave, as far as a glance at its sources tells.

Rows that turn out to be broken or twice there are among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tilth.data.source import Source
from tilth.data.split import Sampling, Split

#: so many records of a local file are read for their labels, which takes a second
GLANCED_ROWS = 50_000


def foretold(sources: Mapping[str, Source], split: Split | None, sampling: Sampling | None) -> dict[str, int] | None:
    """Rows by split; None where they are not known before. `sources`: by their split, or one by "" that is split."""
    labelled = sampling is not None and bool(sampling.labels or sampling.per_label)
    found: Counter[str] = Counter()
    for name, source in sources.items():
        rows = _by_label(source) if labelled else source.count()
        if rows is None:
            return None
        sizes = rows if isinstance(rows, Counter) else Counter({None: rows})
        for where, share in _shares(name, split).items():
            found[where] += round(_kept({label: share * count for label, count in sizes.items()}, sampling, where))
    return dict(found)


def _by_label(source: Source) -> Counter[str | None] | None:
    """Records of each label, where they are near and few."""
    from tilth.data.readers import Record
    from tilth.data.records import look

    if source.peek() is None or (source.count() or GLANCED_ROWS + 1) > GLANCED_ROWS:
        return None
    column = source.columns.get("label", "label")
    items = (item for piece in source.pieces() for item in source.records(piece))
    return Counter(str(look(item.value, column)) for item in items if isinstance(item, Record))


def _shares(name: str, split: Split | None) -> dict[str, float]:
    if name or split is None:
        return {name or "train": 1.0}
    held_out = {"validation": split.validation, "test": split.test}
    return {"train": 1 - sum(held_out.values()), **{where: share for where, share in held_out.items() if share}}


def _kept(sizes: Mapping[str | None, float], sampling: Sampling | None, split: str) -> float:
    """Of rows by label those that the sample takes."""
    if sampling is None:
        return sum(sizes.values())
    wanted = [count for label, count in sizes.items() if sampling.labels is None or label in sampling.labels]
    if split not in sampling.splits:
        return sum(wanted)
    taken = sum(min(count, sampling.per_label or count) for count in wanted)
    return min(taken, sampling.rows or taken)
