"""Rows into instructions: which templates, which demonstrations, and what became of each rendering."""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilth.data.schema import PAYLOADS, Row, row_rng, row_seed
from tilth.errors import StageError
from tilth.generate.engines.confined import Confined, Job, Rendered
from tilth.generate.method import Made, Yield

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset
    from tilth.data.transform import Inputs
    from tilth.generate.templates import Demonstrations, Template, Templates

# a number is printed as one: what reads 007 or ٣ stays a text
_NUMBER = re.compile("0|[1-9][0-9]{0,17}")
#: rows in a row on which a template may run away before the stage ends
STRIKES = 3
_COLUMNS = tuple(dict.fromkeys(name for names in PAYLOADS.values() for name in names))


@dataclass(frozen=True)
class _Draft:
    """One instruction in the making: a row, a template for it, and random numbers of their own."""

    row: Row
    template: Template
    rng: random.Random


class Templating:
    """Asks → for each, its instructions. Implements `MakeFunction`."""

    def __init__(self, method: Templates, inputs: Inputs) -> None:
        self.method = method
        self.chosen = method.chosen
        sources = {item.name: {"jinja": item.jinja, "answer_choices": item.answer_choices} for item in self.chosen}
        self.named = {item.name: item.inspected[0] for item in self.chosen}
        self.render = Confined(sources, method.limits.model_dump())
        self.shown = None if method.demonstrations is None else _Shown(self, method.demonstrations, inputs)
        self.strikes: Counter[str] = Counter()

    def __call__(self, asks: list[Row]) -> list[Yield]:
        drafts = [self._drafts(row) for row in asks]
        flat = [draft for group in drafts for draft in group]
        rendered = self.rendered([(draft.row, draft.template) for draft in flat])
        for draft, item in zip(flat, rendered, strict=True):
            self._refuse_misfit(draft, item)
        made = iter([self._made(draft, item) for draft, item in zip(flat, rendered, strict=True)])
        return [Yield([next(made) for _ in group]) for group in drafts]

    def _drafts(self, row: Row) -> list[_Draft]:
        rng = row_rng(self.method.seed, row["id"], self.method.via)
        order = sorted(rng.sample(range(len(self.chosen)), self.method.per_ask))
        return [_Draft(row, self.chosen[index], random.Random(rng.getrandbits(63))) for index in order]

    def rendered(self, pairs: Sequence[tuple[Row, Template]]) -> list[Rendered]:
        """Each row by its template. StageError where a template runs away on row after row."""
        jobs = [
            Job(template.name, values(self.method, row), row_seed(self.method.seed, row["id"], template.name))
            for row, template in pairs
        ]
        found = []
        for job in jobs:
            [item] = self.render([job])
            self._count(job.template, item)
            found.append(item)
        return found

    def _count(self, name: str, item: Rendered) -> None:
        if item.fault is None or not item.fault.startswith("runaway"):
            self.strikes[name] = 0
            return
        self.strikes[name] += 1
        if self.strikes[name] >= STRIKES:
            raise StageError(
                f"templates: {name!r} ran away on {STRIKES} rows in a row ({item.fault}); mend it, leave it out with "
                "`only`, or raise the limits"
            )

    def _refuse_misfit(self, draft: _Draft, item: Rendered) -> None:
        """StageError where a template needs a column that no row of the data has: it is for other data."""
        have, name = self.method.offered, draft.template.name
        if have is None or not _is_missing(item):
            return
        # a column that other rows have, and this one lacks, may be what is missing where Jinja names none
        odd = bool(self._lacking(draft.row, draft.template) & have)
        for column in sorted(self.named[name] - have):
            # a template may ask whether a column is there; choices are given as None where there are none; of a
            # choice that is taken by a column that is not there Jinja says "no element Undefined"
            unnamed = column == "answer_choices" or item.fault == "missing: list object has no element Undefined"
            if item.fault == f"missing: {column!r} is undefined" or (unnamed and not odd):
                raise StageError(
                    f"templates: {name!r} needs column {column}, which none of the rows has; they have: "
                    f"{', '.join(sorted(have))}. Carry it from the source (source.carry), or leave the template out "
                    "with `only`"
                )

    def _lacking(self, row: Row, template: Template) -> set[str]:
        """The columns that a template names and the row has not."""
        return self.named[template.name] - set(values(self.method, row))

    def _made(self, draft: _Draft, item: Rendered) -> Made:
        """The row; its demonstrations are drawn only where it is one."""
        name = draft.template.name
        meta: dict[str, Any] = {"template": name, "shots": 0}
        if item.choices is not None:
            meta["choices"] = list(item.choices)
        if reason := _reason(name, item):
            if _is_missing(item) and (lacking := self._lacking(draft.row, draft.template)):
                reason = f"missing_column: template {name!r} names {', '.join(sorted(lacking))}, which the row has not"
            return Made({"task": _task(self.method, draft.row)}, reason, meta)
        prompt, completion = item.parts
        if self.shown is not None:
            shots, prompt = self.shown.before(draft.row, draft.template, prompt, draft.rng)
            meta["shots"] = shots
        return Made({"prompt": prompt, "completion": completion, "task": _task(self.method, draft.row)}, None, meta)


class _Shown:
    """Demonstrations: training rows by task, solved by the template of the row that they are shown for."""

    def __init__(self, templating: Templating, config: Demonstrations, inputs: Inputs) -> None:
        self.templating, self.config = templating, config
        self.pools = _pools(config, inputs, templating.method.seed)
        self.solved: dict[tuple[str, str], str] = {}

    def before(self, row: Row, template: Template, prompt: str, rng: random.Random) -> tuple[int, str]:
        """How many demonstrations there are, and they with the row's own prompt after them."""
        if rng.random() < self.config.zero_shot:
            return 0, prompt
        pool = self.pools.get(row["task"], [])
        parts: list[str] = []
        # some more than are wanted: a template may not be for each of them
        for other in rng.sample(pool, min(len(pool), 4 * self.config.shots + 4)):
            if len(parts) == self.config.shots:
                break
            # neither the row itself nor one with the same question, which would tell its answer
            solved = self._solved(other, template) if other["root"] != row["root"] else ""
            if solved and solved not in parts and not solved.startswith(prompt + self.config.between):
                parts.append(solved)
        return len(parts), self.config.separator.join([*parts, prompt])

    def _solved(self, row: Row, template: Template) -> str:
        """A row's prompt and answer; empty where the template is not for it."""
        key = (template.name, row["id"])
        if key not in self.solved:
            [item] = self.templating.rendered([(row, template)])
            self.solved[key] = "" if _reason(template.name, item) else self.config.between.join(item.parts)
        return self.solved[key]


def values(method: Templates, row: Row) -> dict[str, Any]:
    """What a template may name of a row."""
    label = row.get("label")
    own = {name: row[name] for name in _COLUMNS if row.get(name) is not None}
    found = {**row["meta"], "id": row["id"], "task": _task(method, row), **own}
    if label is not None:
        found["label"] = _number(label, method.classes)
        found["label_name"] = method.label_names.get(label, label)
    if method.label_names:
        found["answer_choices"] = [method.label_names.get(name, name) for name in method.classes or method.label_names]
    return found


def offered(method: Templates, data: Dataset) -> frozenset[str]:
    """What a template may name of any row; looks no further than it takes to find all that templates do name."""
    wanted = frozenset[str]().union(*(item.inspected[0] for item in method.chosen))
    found: set[str] = set()
    for row in data.rows():
        found.update(values(method, row))
        if wanted <= found:
            break
    return frozenset(found)


def refuse_other_tasks(config: Demonstrations, data: Dataset, inputs: Inputs) -> None:
    """StageError where no row is of the task of any demonstration, so that no prompt would show one."""
    asked, shown = data.distinct("task"), _training(config, inputs).distinct("task")
    if config.zero_shot < 1 and asked and not asked & shown:
        raise StageError(
            f"templates: demonstrations are training rows of the row's own task, but {config.data} has "
            f"{_listed(shown)} and the rows have {_listed(asked)}; name the task where the rows are read "
            "(source.task), or take demonstrations from data that has those tasks"
        )


def _listed(tasks: Collection[str | None]) -> str:
    names = sorted(map(repr, filter(None, tasks)))[:8]
    return f"task {', '.join(names)}" if names else "none"


def _training(config: Demonstrations, inputs: Inputs) -> Dataset:
    from tilth.data.dataset import Dataset
    from tilth.storage import Store

    return Dataset.open(Store(inputs.urls[config.data])).split("train")


def _task(method: Templates, row: Row) -> str | None:
    task: str | None = method.task or row["task"]
    return task


def _number(label: str, classes: Sequence[str]) -> int | str:
    """A label as templates know it: by its place among the classes, or by the number that it is, if it says so."""
    if label in classes:
        return classes.index(label)
    return int(label) if _NUMBER.fullmatch(label) else label


def _pools(config: Demonstrations, inputs: Inputs, seed: int) -> Mapping[str | None, list[Row]]:
    by_task: dict[str | None, list[Row]] = defaultdict(list)
    for row in _training(config, inputs).rows():
        by_task[row["task"]].append(row)
    return {
        task: heapq.nsmallest(config.pool, rows, key=lambda row: row_seed(seed, row["id"], "demonstration"))
        for task, rows in by_task.items()
    }


def _reason(name: str, item: Rendered) -> str | None:
    """Why a rendering is no row; None for one with a prompt and a completion."""
    if item.fault is not None:
        kind, _, detail = item.fault.partition(": ")
        return f"{kind}: template {name!r}: {detail}"
    if len(item.parts) != 2:
        return f"malformed: template {name!r} gives {len(item.parts)} parts, not prompt ||| completion"
    empty = [part for part, text in zip(("prompt", "completion"), item.parts, strict=True) if not text]
    return f"empty: template {name!r} leaves the {' and '.join(empty)} empty" if empty else None


def _is_missing(item: Rendered) -> bool:
    return item.fault is not None and item.fault.startswith("missing")
