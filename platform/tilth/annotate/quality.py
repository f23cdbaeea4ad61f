"""How good the answers are: agreement, each person's checks, speed and competence, and what the models get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from statistics import median
from typing import TYPE_CHECKING, Any

from tilth.annotate.forms import SIDES, TIE
from tilth.annotate.items import WORK
from tilth.annotate.judgements import Judgement

if TYPE_CHECKING:
    from tilth.annotate.agreement import Labels, Marks
    from tilth.data.bootstrap import Statistic

    #: by name the figure of all items, and what makes a statistic of those that several people judged
    Figures = Mapping[str, tuple[float | None, Callable[[Marks], Statistic]]]

#: whose median time is so many times shorter or longer than the middle person's is an outlier
SPEED = 3.0
#: answers from which on a person's speed says anything
ENOUGH = 5
LABELS = ("first", "second", TIE)
CHOICES = (*SIDES, TIE)
SAMPLES = 1000


@dataclass(frozen=True)
class Grid:
    """Answers as a table of items by people."""

    items: tuple[str, ...]
    #: the row that each item is of
    rows: tuple[str, ...]
    people: tuple[int, ...]
    cells: Mapping[tuple[str, int], Judgement]

    @staticmethod
    def of(found: Sequence[Judgement]) -> Grid:
        cells = {(item.item, item.person): item for item in found}
        rows = {item.item: item.root for item in found}
        return Grid(tuple(rows), tuple(rows.values()), tuple(sorted({p for _, p in cells})), cells)

    def labels(self) -> Labels:
        """(items, people): 0 the item's first model is better, 1 its second, 2 neither, -1 not judged."""
        return self._filled(_label, -1).astype("int64")

    def sides(self) -> Labels:
        """(items, people): 0 the answer shown as A was chosen, 1 B, 2 neither, -1 not judged."""
        return self._filled(lambda cell: CHOICES.index(cell.value["choice"]), -1).astype("int64")

    def marks(self, criterion: str) -> Marks:
        """(items, people) of one criterion, NaN where not judged."""
        return self._filled(lambda cell: cell.value["scores"].get(criterion, nan), nan)

    def _filled(self, value: Callable[[Judgement], float], nothing: float) -> Marks:
        import numpy as np

        rows, columns = ({name: at for at, name in enumerate(names)} for names in (self.items, self.people))
        found = np.full((len(rows), len(columns)), nothing)
        for (item, person), cell in self.cells.items():
            found[rows[item], columns[person]] = value(cell)
        return found


def _label(cell: Judgement) -> int:
    preferred = cell.value["preferred"]
    return LABELS.index(TIE) if preferred == TIE else list(cell.answers).index(preferred)


def figures(found: Sequence[Judgement]) -> dict[str, Any]:
    """Every figure of a campaign as plain data: agreement, people, models; checks are no part of the latter."""
    work = [item for item in found if item.kind == WORK]
    if not work:
        return {"answers": 0, "items": 0, "form": None, "agreement": [], "people": [], "models": []}
    grid = Grid.of(work)
    own = _pairwise(grid) if work[0].pairwise else _direct(grid)
    people = _people(found, grid, own.pop("alike"), own.pop("competence"))
    form = "pairwise" if work[0].pairwise else "direct"
    return {"answers": len(work), "items": len(grid.items), "form": form, "people": people, **own}


def _pairwise(grid: Grid) -> dict[str, Any]:
    from tilth.annotate import agreement
    from tilth.data import agreement as resampled

    labels = grid.labels()
    marks = labels.astype(float)
    marks[labels < 0] = float("nan")
    known, truth = agreement.competence(labels, grid.sides(), len(LABELS))
    alpha = agreement.alpha(marks, "nominal"), partial(resampled.alpha, level="nominal")
    cohen = agreement.cohen(labels), partial(resampled.of_pairs, of="nominal")
    figures: Figures = {
        "Krippendorff's alpha": alpha,
        "Fleiss' kappa": (agreement.fleiss(labels), resampled.fleiss),
        "Cohen's kappa, mean of pairs": cohen,
    }
    sides = [cell.value.get("choice") for cell in grid.cells.values()]
    shown = [side for side in sides if side in ("A", "B")]
    return {
        "agreement": _lines("preference", grid, marks, figures),
        "models": _wins(grid, labels, truth),
        "first_shown": shown.count("A") / len(shown) if shown else None,
        "alike": _with_majority(labels),
        "competence": known.tolist(),
    }


def _lines(of: str, grid: Grid, marks: Marks, figures: Figures) -> list[dict[str, Any]]:
    """Figures of agreement with their 95 % intervals over rows, of the items that several people judged."""
    import numpy as np

    from tilth.data.agreement import by_group, spread

    shared = (~np.isnan(marks)).sum(axis=1) > 1
    rows = [row for row, several in zip(grid.rows, shared, strict=True) if several]
    lines = []
    for figure, (value, statistic) in figures.items():
        ends = (None, None) if value is None else spread(by_group(statistic(marks[shared]), rows), SAMPLES)
        lines.append({"of": of, "figure": figure, "value": value, "low": ends[0], "high": ends[1]})
    return lines


def _with_majority(labels: Labels) -> list[float | None]:
    """Each person's share of answers that are those of most others; items where the others are split do not count."""
    import numpy as np

    found: list[float | None] = []
    for person in range(labels.shape[1]):
        others = np.delete(labels, person, axis=1)
        counts = np.stack([(others == name).sum(axis=1) for name in range(len(LABELS))], axis=1)
        clear = (np.sort(counts, axis=1)[:, -1] > np.sort(counts, axis=1)[:, -2]) & (labels[:, person] >= 0)
        same = counts.argmax(axis=1)[clear] == labels[clear, person]
        found.append(float(same.mean()) if clear.any() else None)
    return found


def _wins(grid: Grid, labels: Labels, truth: Marks) -> list[dict[str, Any]]:
    """Each model's share of wins, a tie as half of one, by the votes and by the votes weighed with competence."""
    models = list(dict.fromkeys(model for cell in grid.cells.values() for model in cell.answers))
    shown = {item: tuple(cell.answers) for (item, _), cell in grid.cells.items()}
    lines = []
    for model in models:
        mine = [(at, shown[item].index(model)) for at, item in enumerate(grid.items) if model in shown[item]]
        votes = [labels[at][labels[at] >= 0] for at, _ in mine]
        won = [
            (float((v == side).mean()) + float((v == 2).mean()) / 2) for v, (_, side) in zip(votes, mine, strict=True)
        ]
        weighed = [float(truth[at, side] + truth[at, 2] / 2) for at, side in mine]
        low, high = interval(won, [grid.rows[at] for at, _ in mine])
        lines.append({
            "model": model, "of": "wins", "value": sum(won) / len(won), "low": low, "high": high,
            "weighed": sum(weighed) / len(weighed), "items": len(mine),
        })  # fmt: skip
    return lines


def _direct(grid: Grid) -> dict[str, Any]:
    from tilth.annotate import agreement
    from tilth.data import agreement as resampled

    criteria = list(dict.fromkeys(name for cell in grid.cells.values() for name in cell.value["scores"]))
    lines: list[dict[str, Any]] = []
    models: list[dict[str, Any]] = []
    standard: list[Marks] = []
    for criterion in criteria:
        marks = grid.marks(criterion)
        z = agreement.standardised(marks)
        standard.append(z)
        alpha = agreement.alpha(marks, "interval"), partial(resampled.alpha, level="interval")
        pearson = agreement.pearson(marks), partial(resampled.of_pairs, of="correlation")
        figures: Figures = {"Krippendorff's alpha (interval)": alpha, "Pearson's r, mean of pairs": pearson}
        lines += _lines(criterion, grid, marks, {**figures, **_kappas(marks)})
        models += _marked(grid, criterion, marks, z)
    alike = _with_others(standard)
    known = [max(0.0, value) if value is not None else None for value in alike]
    return {"agreement": lines, "models": models, "alike": alike, "competence": known}


def _kappas(marks: Marks) -> Figures:
    """Kappas of few steps; a slider has too many for them to mean anything."""
    import numpy as np

    from tilth.annotate import agreement
    from tilth.data import agreement as resampled

    labels = np.where(np.isnan(marks), agreement.NONE, marks).astype(np.int64)
    if labels.max() > 10:
        return {}
    quadratic = agreement.cohen(labels, "quadratic"), partial(resampled.of_pairs, of="quadratic")
    return {"Fleiss' kappa": (agreement.fleiss(labels), resampled.fleiss), "Cohen's kappa (quadratic)": quadratic}


def _with_others(standard: Sequence[Marks]) -> list[float | None]:
    """Each person's correlation with the mean of the others, over all criteria and items."""
    import numpy as np

    from tilth.annotate.agreement import correlation

    every = np.concatenate(standard)
    found: list[float | None] = []
    for person in range(every.shape[1]):
        others = np.delete(every, person, axis=1)
        shared = ~np.isnan(every[:, person]) & (~np.isnan(others)).any(axis=1)
        found.append(correlation(every[shared, person], np.nanmean(others[shared], axis=1)) if shared.any() else None)
    return found


def _marked(grid: Grid, criterion: str, marks: Marks, z: Marks) -> list[dict[str, Any]]:
    """Each model's mean mark and mean standardised mark, over items of the mean over people."""
    import numpy as np

    shown = {item: next(iter(cell.answers)) for (item, _), cell in grid.cells.items()}
    lines = []
    for model in dict.fromkeys(shown.values()):
        mine = [at for at, item in enumerate(grid.items) if shown[item] == model and not np.isnan(marks[at]).all()]
        means = np.nanmean(marks[mine], axis=1)
        low, high = interval(means.tolist(), [grid.rows[at] for at in mine])
        lines.append({
            "model": model, "of": criterion, "value": float(means.mean()), "low": low, "high": high,
            "weighed": float(np.nanmean(z[mine], axis=1).mean()), "items": len(mine),
        })  # fmt: skip
    return lines


def interval(values: Sequence[float], rows: Sequence[str]) -> tuple[float, float]:
    """95 % of the means of resampled rows (percentile bootstrap), each with the values of all its items."""
    from tilth.data import bootstrap
    from tilth.data.agreement import by_group

    found = bootstrap.interval(by_group(bootstrap.mean(values), rows), SAMPLES)
    return found.low, found.high


def _people(
    found: Sequence[Judgement], grid: Grid, alike: Sequence[float | None], competence: Sequence[float | None]
) -> list[dict[str, Any]]:
    """One line for each person: answers, time, checks, agreement with the others, competence."""
    times = {person: median(i.seconds for i in found if i.person == person) for person in {i.person for i in found}}
    middle = median(times.values())
    place = {person: at for at, person in enumerate(grid.people)}
    lines = []
    for person in sorted(times):
        own = [item for item in found if item.person == person]
        passed = [item.passed for item in own if item.passed is not None]
        at = place.get(person)
        lines.append({
            "person": person, "answers": len(own), "seconds": times[person],
            "speed": _speed(times[person], middle, len(own), len(times)),
            "checks": len(passed), "failed": passed.count(False),
            "alike": alike[at] if at is not None else None,
            "competence": competence[at] if at is not None else None,
        })  # fmt: skip
    return lines


def _speed(seconds: float, middle: float, answers: int, people: int) -> str:
    """Whether somebody is far faster or slower than the middle person."""
    if answers < ENOUGH or people < 3 or middle == 0:
        return ""
    return "fast" if seconds * SPEED < middle else "slow" if seconds > SPEED * middle else ""


def figure(value: Any) -> str:
    """A figure as people read it; a dash where it cannot be told."""
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
