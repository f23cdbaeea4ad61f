"""Accounts: invitations, tokens and signed-in browsers. Tokens leave this module once and are kept as hashes."""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from tilth.annotate.book import now
from tilth.annotate.tables import Invitation, Person, Visit

#: seconds
INVITED, IDLE = 14 * 86_400, 7 * 86_400
#: how old the last visit of a browser may be before it is written down anew
FRESH = 86_400
NAME = 80


def hashed(token: str) -> str:
    """What is kept of a token; 256 random bits need no salt."""
    return hashlib.sha256(token.encode()).hexdigest()


def invite(session: Session, note: str) -> str:
    """A new invitation's token, for one person."""
    token = secrets.token_urlsafe(32)
    session.add(
        Invitation(token=hashed(token), note=note[:NAME], created=now(), expires=now() + INVITED, person_id=None)
    )
    return token


def invitation(session: Session, token: str) -> Invitation | None:
    """The invitation of a token, if it can still be taken up."""
    found = session.get(Invitation, hashed(token))
    return found if found is not None and found.person_id is None and found.expires > now() else None


def join(session: Session, token: str, name: str) -> str | None:
    """Take up an invitation; the new person's own token, None where the invitation does not hold."""
    found = invitation(session, token)
    if found is None:
        return None
    person, own = _enrolled(session, name, manager=False)
    found.person_id = person.id
    return own


def manager(session: Session) -> str:
    """A new token for the manager, who is made at first; earlier ones no longer hold."""
    found = session.scalar(select(Person).where(Person.manager))
    if found is None:
        return _enrolled(session, "manager", manager=True)[1]
    token = secrets.token_urlsafe(32)
    found.token = hashed(token)
    return token


def _enrolled(session: Session, name: str, manager: bool) -> tuple[Person, str]:
    token = secrets.token_urlsafe(32)
    person = Person(name=name[:NAME], manager=manager, token=hashed(token), joined=now())
    session.add(person)
    session.flush()
    return person, token


def sign_in(session: Session, token: str) -> str | None:
    """A new browser's cookie for a person's token; None where nobody has it."""
    person = session.scalar(select(Person).where(Person.token == hashed(token)))
    if person is None:
        return None
    cookie = secrets.token_urlsafe(32)
    session.execute(delete(Visit).where(Visit.seen < now() - IDLE))
    session.add(Visit(token=hashed(cookie), person_id=person.id, seen=now()))
    return cookie


def visit(session: Session, cookie: str) -> Visit | None:
    """The visit of a signed-in browser; None where it is nobody's, or nobody came for too long."""
    found = session.get(Visit, hashed(cookie))
    return found if found is not None and found.seen > now() - IDLE else None


def came(session: Session, cookie: str) -> None:
    """Write down that a browser came, so that whoever comes stays signed in."""
    session.execute(update(Visit).where(Visit.token == hashed(cookie)).values(seen=now()))


def sign_out(session: Session, cookie: str) -> None:
    session.execute(delete(Visit).where(Visit.token == hashed(cookie)))
