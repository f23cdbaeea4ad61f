"""Grids: every combination of persona, topic, difficulty or whatever axes there are, each asked for as often.

persona: a beekeeper, topic: percentages, difficulty: easy  →  A beekeeper gets 240 jars from 16 hives. By how many …
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice, product, zip_longest
from random import Random
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tilth.data.schema import Row, RowType, row_rng
from tilth.data.transform import Inputs
from tilth.errors import Problem, StageError
from tilth.generate.base import Generator, Prompt
from tilth.generate.drafts import Draft, asked, bare, instruction_of, user, yields
from tilth.generate.method import MakeFunction, Pool, PoolMethod, Yield, opened
from tilth.generate.render import fault, render

Axes = Mapping[str, Sequence[str]]
Cell = dict[str, str]
Key = tuple[tuple[str, str], ...]
LABEL = "label"
_GIVEN = ("axes", "demonstrations")
_TEMPLATE = """\
Write one %s. It must fit all of this:
{%% for name, value in axes.items() %%}
- {{ name }}: {{ value }}
{%% endfor %%}
{%% if demonstrations %%}
These are examples of the form, not of the content:
{%% for text in demonstrations %%}
- {{ text }}
{%% endfor %%}
{%% endif %%}
Write only %s, without naming the points above."""
_TEXT = _TEMPLATE % ("text, as people write it", "the text")
_TEMPLATES = {
    "completion": _TEMPLATE % ("instruction or question for an AI assistant, complete in itself", "the instruction"),
    "text": _TEXT,
    "labelled": _TEXT,
}


class Grid(PoolMethod):
    """A grid of axes, as Persona Hub crosses personas with tasks (Ge et al. 2024, arXiv:2406.20094).

    A round goes through all combinations in an order drawn anew, those first of which fewest rows were accepted, so
    that each is asked for as often as any other; of a grid with far more combinations than rows it draws some that
    have none yet. What a step such as a balance is short of comes before: a value of
    any axis that it names. A completion is an instruction and, asked for next, its answer; a labelled row is a text
    and the value of the axis `label`.
    """

    takes: ClassVar[tuple[RowType, ...]] = ("text", "labelled", "completion")
    version: ClassVar[int] = 2  # of large grids combinations are drawn without listing them all

    axes: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        description="Values by axis, such as {topic: [rain, soil], difficulty: [easy, hard]}."
    )
    data_axis: str | None = Field(None, description="Name of one more axis: the texts of the data, such as personas.")
    row_type: Literal["completion", "labelled", "text"] = Field("completion", description="What is made of it.")
    template: str | None = Field(
        None, description="Jinja over the axes by name, `axes`, a mapping of them, and `demonstrations`, a list."
    )
    demonstrations: int = Field(
        0, ge=0, le=32, description="Rows of the data shown with each ask; for a label, rows that have it."
    )

    @property
    def makes(self) -> RowType:
        return self.row_type

    def check(self) -> list[Problem]:
        names = [*self.axes, *([self.data_axis] if self.data_axis else [])]
        problems = []
        if not names or len(set(names)) < len(names):
            problems.append(Problem("axes", "needs at least one axis, and each name once", "name the axes"))
        if self.row_type == "labelled" and LABEL not in names:
            problems.append(Problem("axes", "labelled rows need the axis label", "add axes.label"))
        if taken := set(names) & set(_GIVEN):
            problems.append(Problem("axes", f"{taken.pop()} is the name of something else", "give it another"))
        if self.template is not None and (wrong := fault(self.template, (*names, *_GIVEN))):
            problems.append(Problem("template", wrong, f"there are: {', '.join((*names, *_GIVEN))}"))
        return problems

    def plan(self, number: int, pool: Pool, wanted: int) -> list[Row]:
        axes = {name: tuple(dict.fromkeys(values)) for name, values in self.axes.items()}
        if self.data_axis:
            axes[self.data_axis] = _texts(pool.seeds)
        used = Counter(_key(row["meta"]["axes"]) for row in pool.accepted)
        rng = row_rng(self.seed, str(number), self.via)
        chosen = _lacking(axes, pool.shortfall, used, wanted, rng)
        chosen += _cells([axes], used, wanted - len(chosen), rng)
        shown = [(instruction_of(row), row.get("label")) for row in pool.seeds] if self.demonstrations else []
        return [self._asked(number, index, cell, shown) for index, cell in enumerate(chosen)]

    def _asked(self, number: int, index: int, cell: Cell, seeds: Sequence[tuple[str, str | None]]) -> Row:
        fit = [text for text, label in seeds if label is None or cell.get(LABEL, label) == label]
        rng = row_rng(self.seed, f"{number}.{index}", self.via)
        return self.ask(number, index, axes=cell, demonstrations=rng.sample(fit, min(self.demonstrations, len(fit))))

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        ask = opened(generator, inputs)

        def make(asks: list[Row]) -> list[Yield]:
            drafts = [Draft(row, meta={"axes": row["meta"]["axes"]}) for row in asks]
            column = "prompt" if self.row_type == "completion" else "text"
            for draft, answer in asked(ask, drafts, self._asking):
                draft.payload = {column: bare(answer.text)}
                if self.row_type == "labelled":
                    draft.payload["label"] = draft.meta["axes"][LABEL]
            if self.row_type == "completion":
                for draft, answer in asked(ask, drafts, self._answering):
                    draft.payload["completion"] = answer.text.strip()
            return yields(asks, drafts)

        return make

    def _asking(self, draft: Draft) -> Prompt:
        meta = draft.ask["meta"]
        values = {**meta["axes"], "axes": meta["axes"], "demonstrations": meta["demonstrations"]}
        return Prompt(user(render(self.template or _TEMPLATES[self.row_type], **values)), self.seed_of(draft.ask))

    def _answering(self, draft: Draft) -> Prompt:
        return Prompt(user(draft.payload["prompt"]), self.seed_of(draft.ask, "answer"))


def _texts(seeds: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for row in seeds if (text := instruction_of(row))))


def _key(cell: Mapping[str, str]) -> Key:
    return tuple(sorted(cell.items()))


def _cells(grids: Sequence[Axes], used: Counter[Key], wanted: int, rng: Random) -> list[Cell]:
    """So many combinations of grids that have none in common, those first that are used least, in random order."""
    sizes = [math.prod(map(len, axes.values())) for axes in grids]
    if sum(sizes) >= 2 * (len(used) + wanted):
        return list(islice(_untouched(grids, sizes, used, rng), wanted))
    cells = [dict(zip(axes, values, strict=True)) for axes in grids for values in product(*axes.values())]
    rng.shuffle(cells)
    cells.sort(key=lambda cell: used[_key(cell)])
    return list(islice(cycle(cells), wanted))


def _untouched(grids: Sequence[Axes], sizes: Sequence[int], used: Counter[Key], rng: Random) -> Iterator[Cell]:
    """Combinations that are not used, each once; made for grids of which at most half are used or come of it."""
    seen = set(used)
    while True:
        axes = rng.choices(grids, sizes)[0]
        cell = {name: rng.choice(values) for name, values in axes.items()}
        if (key := _key(cell)) not in seen:
            seen.add(key)
            yield cell


def _lacking(axes: Axes, shortfall: Mapping[str, int], used: Counter[Key], wanted: int, rng: Random) -> list[Cell]:
    """A combination for every row that is short of a value, the values in turn; StageError where none has it."""
    turns = []
    for value, count in shortfall.items():
        holding = _holding(axes, value)
        if not holding:
            raise StageError(f"{count:,} rows with {value!r} are wanted, but no axis of the grid has it; add it to one")
        turns.append(_cells(holding, used, min(count, wanted), rng))
    return list(islice((cell for group in zip_longest(*turns) for cell in group if cell is not None), wanted))


def _holding(axes: Axes, value: str) -> list[Axes]:
    """All combinations with this value on some axis, as grids that have none in common."""
    found: list[Axes] = []
    rest = dict(axes)
    for name, values in axes.items():
        if value in values:
            found.append({**rest, name: (value,)})
            rest[name] = [other for other in values if other != value]
    return found
