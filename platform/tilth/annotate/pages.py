"""What an annotator sees: joining, signing in, one item after another, and undoing the last answer."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from tilth.annotate import people, work
from tilth.annotate.app import Annotator, Fields, Posted, SignedIn, address, go, page, remember, site_of
from tilth.annotate.forms import SIDES, Unanswered
from tilth.annotate.guard import COOKIE
from tilth.annotate.tables import Assignment, Person

router = APIRouter()
#: digits that no number of a row has: databases count to 2⁶³
LONGEST_NUMBER = 19
NOTICES = {
    "already": "This item was answered in another window; that answer counts. Undo it to change it.",
    "undone": "Your last answer was taken back. Answer anew.",
    "nothing": "There is nothing to undo.",
}


@router.get("/")
def begin(person: SignedIn) -> Response:
    """Everybody's own first page."""
    return go("/manage" if person.manager else "/work")


@router.get("/healthz")
def alive() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/login")
@router.get("/login/{token}")
def login_page(request: Request, token: str = "") -> Response:
    """A form for a person's token. A link holds it already; to look at the link alone does nothing."""
    return page(request, "login.html.j2", {"token": token, "wrong": False})


@router.post("/login")
def login(request: Request, fields: Posted) -> Response:
    token = "".join(fields.get("token", ())).strip().rpartition("/")[2]
    cookie = _with_token(request, lambda session: people.sign_in(session, token))
    if cookie is None:
        return page(request, "login.html.j2", {"token": "", "wrong": True}, 401)
    return _entered(request, cookie, "/")


@router.get("/join/{token}")
def join_page(request: Request, token: str) -> Response:
    found = _with_token(request, lambda session: people.invitation(session, token))
    if found is None:
        raise HTTPException(404, "This invitation was taken up already, or it is too old. Ask for a new one.")
    return page(request, "join.html.j2", {"token": token, "note": found.note, "missing": False})


@router.post("/join/{token}")
def join(request: Request, token: str, fields: Posted) -> Response:
    """A new account, signed in at once; its own link is shown this one time."""
    name = " ".join("".join(fields.get("name", ())).split())
    if not name:
        return page(request, "join.html.j2", {"token": token, "note": "", "missing": True}, 422)
    own = _with_token(request, lambda session: people.join(session, token, name))
    if own is None:
        raise HTTPException(404, "This invitation was taken up already, or it is too old. Ask for a new one.")
    with site_of(request).book.writing() as session:
        cookie = people.sign_in(session, own)
    link = f"{site_of(request).base(request)}/login/{own}"
    return page(request, "welcome.html.j2", {"name": name, "link": link}, cookie=cookie or "")


def _with_token(request: Request, use: Any) -> Any:
    """What a token is good for; whoever tries many wrong ones must wait."""
    site = site_of(request)
    if site.guesses.full(address(request)):
        raise HTTPException(429, "Too many wrong tokens. Please wait a minute.")
    with site.book.writing() as session:
        found = use(session)
    if found is None:
        site.guesses.allow(address(request))
    return found


def _entered(request: Request, cookie: str, where: str) -> Response:
    response = go(where)
    remember(response, site_of(request), cookie)
    return response


@router.post("/logout")
def logout(request: Request, person: SignedIn, fields: Posted) -> Response:
    with site_of(request).book.writing() as session:
        people.sign_out(session, request.cookies.get(COOKIE, ""))
    response = go("/login")
    response.delete_cookie(COOKIE)
    return response


@router.get("/work")
def work_page(request: Request, person: Annotator, notice: str = "") -> Response:
    """The item to judge now, or thanks where none is left."""
    return _item(request, person, {}, NOTICES.get(notice, ""))


@router.post("/answer")
def answer(request: Request, person: Annotator, fields: Posted) -> Response:
    """Take an answer. It is on disk when the browser is sent on; sent twice it counts once."""
    site, number, key = site_of(request), _number(fields, "assignment"), "".join(fields.get("key", ()))
    with site.book.writing() as session:
        given = None if number is None else session.get(Assignment, number)
        if given is None or given.person_id != person.id or not 8 <= len(key) <= 80:
            raise HTTPException(404, "There is no such item for you.")
        try:
            value = site.form.read(fields, work.shown_models(given))
        except Unanswered as error:
            problem = str(error)
        else:
            problem = ""
            fate = work.answer(session, person, given, key, value)
    if problem:
        return _item(request, person, fields, problem, 422)
    return go("/work?notice=already" if fate == "already" else "/work")


@router.post("/undo")
def undo(request: Request, person: Annotator, fields: Posted) -> Response:
    """Take back the last answer; sent twice it takes back one."""
    number = _number(fields, "answer")
    with site_of(request).book.writing() as session:
        undone = number is not None and work.undo(session, person, number)
    return go(f"/work?notice={'undone' if undone else 'nothing'}")


def _number(fields: Fields, name: str) -> int | None:
    """The number of a row that a form names; None for what is none."""
    text = "".join(fields.get(name, ()))
    return int(text) if text.isascii() and text.isdigit() and len(text) < LONGEST_NUMBER else None


def _item(request: Request, person: Person, fields: Mapping[str, Any], notice: str, status: int = 200) -> Response:
    site = site_of(request)
    with site.book.writing() as session:
        given = work.take(session, person, site.campaign)
    with site.book.reading() as session:
        values = {
            "person": person, "notice": notice, "progress": work.progress(session, person, site.campaign),
            "last": work.last(session, person), "form": site.form, "given": given, "key": secrets.token_urlsafe(16),
            "instructions": site.campaign.instructions, "filled": fields,
        }  # fmt: skip
        before = work.earlier(session, given) if given is not None and not fields else None
    if given is None:
        return page(request, "done.html.j2", values)
    texts = [given.item.answers[place][1] for place in given.order]
    if before is not None:
        values["filled"] = site.form.fields(before)
    values |= {"prompt": given.item.prompt, "texts": list(zip(SIDES, texts, strict=False))}
    return page(request, f"{site.form.kind}.html.j2", values, status)
