"""What the manager sees: progress, people and invitations, the quality of the answers, exports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import func, select

from tilth.annotate import people
from tilth.annotate.app import Manager, Posted, go, page, site_of
from tilth.annotate.book import Book, now
from tilth.annotate.exports import preferences, scores
from tilth.annotate.items import WORK
from tilth.annotate.judgements import judgements
from tilth.annotate.quality import figures
from tilth.annotate.tables import Answer, Assignment, Invitation, Person, Shown

router = APIRouter(prefix="/manage")
EXPORTS = ("answers", "preferences", "scores")


@router.get("")
def overview(request: Request, person: Manager) -> Response:
    return _overview(request, person)


@router.post("/invite")
def invite(request: Request, person: Manager, fields: Posted) -> Response:
    """A link for one more person, shown this one time."""
    with site_of(request).book.writing() as session:
        token = people.invite(session, "".join(fields.get("note", ())).strip())
    return _overview(request, person, f"{site_of(request).base(request)}/join/{token}")


#: numbers beyond it are none that a database of ours knows
MOST_PEOPLE = 1 << 31


@router.post("/people/{number}")
def leave_out(request: Request, person: Manager, number: int, fields: Posted) -> Response:
    """Count a person's answers no more, or again; their items are given to others."""
    with site_of(request).book.writing() as session:
        found = session.get(Person, number) if number < MOST_PEOPLE else None
        if found is None or found.manager:
            raise HTTPException(404, "There is no such annotator.")
        found.left_out = fields.get("left_out") == ["yes"]
    return go("/manage#people")


@router.get("/export/{name}.jsonl")
def export(request: Request, person: Manager, name: str) -> Response:
    """Answers one by one, preference pairs, or scores, as JSON Lines."""
    if name not in EXPORTS:
        raise HTTPException(404, f"There are exports of {', '.join(EXPORTS)}.")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in exported(site_of(request).book, name))
    headers = {"Content-Disposition": f'attachment; filename="{name}.jsonl"'}
    return StreamingResponse(lines, media_type="application/x-ndjson", headers=headers)


def exported(book: Book, name: str) -> Iterator[dict[str, Any]]:
    """The rows of one export."""
    with book.reading() as session:
        found = judgements(session)
    if name == "answers":
        yield from (item.plain() for item in found)
    elif name == "preferences":
        yield from (pair.plain() for pair in preferences(found))
    else:
        yield from scores(found)


def _overview(request: Request, person: Person, link: str = "") -> Response:
    site = site_of(request)
    with site.book.reading() as session:
        found = judgements(session)
        values = {"person": person, "link": link, "state": _state(session, site.campaign.overlap)}
        values |= {"people": session.scalars(select(Person).where(~Person.manager).order_by(Person.id)).all()}
    return page(request, "manage.html.j2", {**values, "figures": figures(found), "exports": EXPORTS})


def _state(session: Any, overlap: int) -> dict[str, int]:
    """How far the campaign is: items, answers wanted and given, invitations that are open."""
    items = session.scalar(select(func.count()).select_from(Shown).where(Shown.kind == WORK)) or 0
    answers = select(Assignment.item_id).join(Answer).join(Person, Person.id == Assignment.person_id).join(Shown)
    answers = answers.where(Answer.withdrawn.is_(None), ~Person.left_out, Shown.kind == WORK)
    given = session.scalar(select(func.count()).select_from(answers.subquery())) or 0
    full = answers.group_by(Assignment.item_id).having(func.count() >= overlap).subquery()
    open_links = select(func.count()).select_from(Invitation)
    open_links = open_links.where(Invitation.person_id.is_(None), Invitation.expires > now())
    return {
        "items": items, "wanted": items * overlap, "given": given,
        "full": session.scalar(select(func.count()).select_from(full)) or 0, "open": session.scalar(open_links) or 0,
    }  # fmt: skip
