"""Who judges what, and what counts: items are given out, answers taken once, and taken back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, and_, desc, exists, func, or_, select
from sqlalchemy.orm import Session

from tilth.annotate.book import now
from tilth.annotate.config import Annotation
from tilth.annotate.items import ATTENTION, KNOWN, WORK
from tilth.annotate.tables import Answer, Assignment, Person, Shown
from tilth.data.schema import row_seed

#: of equally urgent items one of so many is drawn, so that people who work side by side see different ones
CHOICE = 20
#: an answer counts with at most so much time: who goes to lunch does not judge for an hour
LONGEST = 3600.0
PEOPLE = "people_so_far"

Fate = Literal["counted", "repeated", "already", "unknown"]


@dataclass(frozen=True)
class Progress:
    """How far a person is: answers given, and items that could still be given."""

    done: int
    left: int

    @property
    def total(self) -> int:
        return self.done + self.left


def counted(assignment: Any = Assignment) -> ColumnElement[bool]:
    """Whether an assignment has an answer that counts."""
    return exists().where(Answer.assignment_id == assignment.id, Answer.withdrawn.is_(None))


def take(session: Session, person: Person, campaign: Annotation) -> Assignment | None:
    """The item that a person is to judge now: the one that is open, else a new one; None where nothing is left."""
    mine = select(Assignment).where(Assignment.person_id == person.id)
    opened = session.scalar(mine.where(~counted()).order_by(Assignment.position).limit(1))
    if opened is not None:
        return opened
    position = session.scalar(select(func.count()).select_from(mine.subquery())) or 0
    item = _check(session, person, campaign, position) or _work(session, person, campaign)
    if item is None:
        return None
    order = list(range(len(item.answers)))
    random.Random(row_seed(campaign.seed, f"{item.id}\x00{person.id}", "order")).shuffle(order)
    given = Assignment(item_id=item.id, person_id=person.id, position=position, order=order, given=now(), item=item)
    session.add(given)
    session.flush()
    return given


def _unseen(person: Person) -> ColumnElement[bool]:
    return Shown.id.not_in(select(Assignment.item_id).where(Assignment.person_id == person.id))


def _check(session: Session, person: Person, campaign: Annotation, position: int) -> Shown | None:
    """A known-answer item or an attention check where one is due: in every stretch of so many, at a random place."""
    checks = campaign.checks
    for kind, every in ((KNOWN, checks.known_every), (ATTENTION, checks.attention_every)):
        if every and position and position % every == _turn(campaign.seed, person, kind, position // every, every):
            found = session.scalar(
                select(Shown).where(Shown.kind == kind, _unseen(person)).order_by(Shown.place).limit(1)
            )
            if found is not None:
                return found
    return None


def _turn(seed: int, person: Person, kind: str, stretch: int, every: int) -> int:
    return row_seed(seed, f"{person.id}\x00{kind}\x00{stretch}", "check") % every


def _wanted(person: Person, campaign: Annotation) -> Select[Shown, int]:
    """Items that too few people have judged or hold, with how many `people` do."""
    fresh = Assignment.given > now() - 60 * campaign.lease_minutes
    live = select(Assignment.item_id, func.count().label("people")).join(Person, Person.id == Assignment.person_id)
    live = live.where(~Person.left_out, or_(counted(), fresh)).group_by(Assignment.item_id)
    held = live.subquery()
    people = func.coalesce(held.c.people, 0).label(PEOPLE)
    query = select(Shown, people).outerjoin(held, held.c.item_id == Shown.id)
    return query.where(and_(Shown.kind == WORK, func.coalesce(held.c.people, 0) < campaign.overlap, _unseen(person)))


def _work(session: Session, person: Person, campaign: Annotation) -> Shown | None:
    """Of the items that lack the fewest people one at random: items are finished one after another."""
    query = _wanted(person, campaign)
    found = session.execute(query.order_by(desc(PEOPLE), Shown.place).limit(CHOICE)).all()
    first = [item for item, people in found if people == found[0][1]]
    if not first:
        return None
    return random.Random(row_seed(campaign.seed, f"{person.id}\x00{first[0].id}", "draw")).choice(first)


def progress(session: Session, person: Person, campaign: Annotation) -> Progress:
    """How far a person is; checks are counted with the rest, so that nothing tells them apart."""
    mine = select(func.count()).select_from(Assignment).where(Assignment.person_id == person.id)
    done = session.scalar(mine.where(counted())) or 0
    opened = session.scalar(mine.where(~counted())) or 0
    wanted = _wanted(person, campaign).subquery()
    left = session.scalar(select(func.count()).select_from(wanted)) or 0
    return Progress(done, left + opened)


def answer(session: Session, person: Person, assignment: Assignment, key: str, value: dict[str, Any]) -> Fate:
    """Enter an answer once, whoever sends it twice: by its key, and by the item that it answers."""
    if assignment.person_id != person.id:
        return "unknown"
    if session.scalar(select(Answer.id).where(Answer.key == f"{person.id}/{key}")) is not None:
        return "repeated"
    if session.scalar(_counting(assignment)) is not None:
        return "already"
    seconds = min(max(0.0, now() - assignment.given), LONGEST)
    session.add(
        Answer(assignment_id=assignment.id, key=f"{person.id}/{key}", value=value, seconds=seconds, at=now(),
               withdrawn=None)
    )  # fmt: skip
    return "counted"


def _counting(assignment: Assignment) -> Select[Answer]:
    return select(Answer).where(Answer.assignment_id == assignment.id, Answer.withdrawn.is_(None))


def last(session: Session, person: Person) -> Answer | None:
    """A person's latest answer that counts: the one that can be undone."""
    query = select(Answer).join(Assignment).where(Assignment.person_id == person.id, Answer.withdrawn.is_(None))
    return session.scalar(query.order_by(Answer.id.desc()).limit(1))


def undo(session: Session, person: Person, number: int) -> bool:
    """Take the answer of this number back, if it is the person's latest; its item is open again."""
    found = last(session, person)
    if found is None or found.id != number:
        return False
    found.withdrawn = now()
    found.assignment.given = now()
    return True


def earlier(session: Session, assignment: Assignment) -> dict[str, Any] | None:
    """What was answered before it was taken back, to begin from."""
    query = select(Answer.value).where(Answer.assignment_id == assignment.id).order_by(Answer.id.desc()).limit(1)
    return session.scalar(query)


def shown_models(assignment: Assignment) -> Sequence[str]:
    """The models in the order in which this person sees them."""
    return [assignment.item.answers[place][0] for place in assignment.order]
