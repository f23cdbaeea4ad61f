"""What people said of the answers that judges saw: in columns of the rows, or in a campaign of `tilth annotate`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

from tilth.data.schema import Row
from tilth.errors import StageError
from tilth.evaluate.judging.people import Outcomes, People, Verdicts, majority
from tilth.paths import filesystem, reaching


@dataclass(frozen=True)
class Opinions:
    """Of each person the outcomes of pairs, the models in the judges' order; of answers the mean of people's marks."""

    persons: Sequence[Outcomes] = ()
    #: by row and model
    marks: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def most(self) -> Outcomes:
        """What most people said of each pair."""
        pairs = {pair: None for person in self.persons for pair in person}
        said = {pair: majority([person.get(pair) for person in self.persons]) for pair in pairs}
        return {pair: share for pair, share in said.items() if share is not None}


def opinions(people: People, rows: Sequence[Row], models: Sequence[str]) -> Opinions:
    """Of the judged rows (`meta.candidates` holds the answers); StageError where a campaign has nothing of them."""
    persons = _in_columns(rows, people.verdicts, models) if people.verdicts else []
    marks = {
        (row["id"], model): mark for row in rows for model in models if (mark := people.rating(row, model)) is not None
    }
    if people.campaign is None:
        return Opinions(persons, marks)
    asked = _in_campaign(people.campaign, rows, models)
    return Opinions([*persons, *asked.persons], {**asked.marks, **marks})


def _in_columns(rows: Sequence[Row], verdicts: Verdicts, models: Sequence[str]) -> list[Outcomes]:
    persons: list[Outcomes] = [{} for _ in verdicts.columns]
    for row in rows:
        for person, share in zip(persons, verdicts.of(row), strict=True):
            if share is not None:
                person |= _outcome(row["id"], verdicts.models, share, models)
    return persons


def _outcome(row_id: str, pair: Sequence[str], share: float, models: Sequence[str]) -> Outcomes:
    """The first one's share of a win, as that of the model that judges name first."""
    one, other = pair
    if models.index(one) > models.index(other):
        return {(row_id, other, one): 1 - share}
    return {(row_id, one, other): share}


def _in_campaign(path: str, rows: Sequence[Row], models: Sequence[str]) -> Opinions:
    given = {row["id"]: row["meta"]["candidates"] for row in rows}
    persons: dict[int, Outcomes] = defaultdict(dict)
    marked: list[tuple[tuple[str, str], Mapping[str, float]]] = []
    for line in _lines(path):
        shown = line["answers"]
        row_id = line["item"].rpartition(f":{'~'.join(shown)}")[0]
        seen = given.get(row_id, {})
        if line["kind"] != "work" or any(seen.get(name, "").strip() != text.strip() for name, text in shown.items()):
            continue  # a check of attention, or an answer that no judge saw
        if (preferred := line["value"].get("preferred")) is not None:
            one, other = shown
            share = {one: 1.0, other: 0.0}.get(preferred, 0.5)
            persons[line["person"]] |= _outcome(row_id, (one, other), share, models)
        else:
            [model] = shown
            marked.append(((row_id, model), line["value"]["scores"]))
    if not persons and not marked:
        raise StageError(f"{path} holds no word on these answers; was the campaign held on this very evaluation?")
    return Opinions(list(persons.values()), _marks(marked))


def _marks(marked: Sequence[tuple[tuple[str, str], Mapping[str, float]]]) -> dict[tuple[str, str], float]:
    """The mean mark of each answer, every criterion by its own spread: five steps count as much as a hundred do."""
    spreads: dict[str, list[float]] = defaultdict(list)
    for _, scores in marked:
        for name, mark in scores.items():
            spreads[name].append(mark)
    scales = {name: (fmean(found), pstdev(found) or 1.0) for name, found in spreads.items()}
    marks: dict[tuple[str, str], list[float]] = defaultdict(list)
    for place, scores in marked:
        marks[place].append(fmean((mark - scales[name][0]) / scales[name][1] for name, mark in scores.items()))
    return {place: fmean(found) for place, found in marks.items()}


def _lines(path: str) -> Iterator[dict[str, Any]]:
    fs, inner = filesystem(path)
    with reaching(path):
        text = fs.cat_file(inner).decode()
    try:
        for line in filter(str.strip, text.split("\n")):
            found = json.loads(line)
            yield {name: found[name] for name in ("item", "kind", "answers", "person", "value")}
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{path} holds no exported answers ({error!r}); export `answers` from the campaign") from error
