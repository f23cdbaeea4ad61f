"""The trace of a training run, `trace.jsonl`: one line for each step.

It grows in segments, `trace/STEP.jsonl`, each written just before the checkpoint of that step: a resumed run writes
the segments after its checkpoint again, so that the whole is that of one uninterrupted run.

A line holds step, epoch, loss, learning_rate, grad_norm, tokens, seconds, and `rows`: the ids that the step saw.
Of several tasks also `tasks`: of each that it saw rows, items (what losses are averaged over), loss, and weight; and
where single tasks' gradients are taken `conflict`: the tasks and the matrix of the cosines between their gradients.
After steps at which held-out rows were looked at, also validation_loss, and where answers to them were asked for
`answers`: exact_match, rouge_l, and the first answers by row.
"""

from __future__ import annotations

import json
from typing import Any

from tilth.storage import Store

Line = dict[str, Any]
TRACE = "trace.jsonl"
SEGMENTS = "trace"


def write_segment(store: Store, step: int, lines: list[Line]) -> None:
    """The lines since the last segment, up to `step`."""
    _write(store, f"{SEGMENTS}/{step:08d}.jsonl", lines)


def merge(store: Store, last: int) -> None:
    """Write `trace.jsonl` from the segments, up to step `last`."""
    found = {line["step"]: line for name in store.list(SEGMENTS) for line in _read(store, f"{SEGMENTS}/{name}")}
    _write(store, TRACE, [found[step] for step in sorted(found) if step <= last])


def forget(store: Store, last: int) -> None:
    """Remove the segments that were written after step `last`, by a run that ended there or is taken up from there."""
    for name in store.list(SEGMENTS):
        if int(name.partition(".")[0]) > last:
            store.remove(f"{SEGMENTS}/{name}")


def read(store: Store) -> list[Line]:
    """All lines of a finished trace, in order."""
    return _read(store, TRACE)


def _write(store: Store, name: str, lines: list[Line]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    store.write(name, text.encode("utf-8", "surrogatepass"))


def _read(store: Store, name: str) -> list[Line]:
    return [json.loads(line) for line in store.read(name).decode("utf-8", "surrogatepass").splitlines()]
