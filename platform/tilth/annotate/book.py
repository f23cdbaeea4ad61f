"""The database of a campaign: every answer is on disk before anybody is told that it counts.

SQLite keeps a write-ahead log and syncs it at every commit; PostgreSQL is taken by its URL.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, delete, event, make_url, select, text, update
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from tilth.annotate.forms import Form
from tilth.annotate.items import ATTENTION, KNOWN, RETIRED, WORK, Item
from tilth.annotate.tables import Answer, Assignment, Base, Setting, Shown
from tilth.config import dump
from tilth.data.schema import row_seed
from tilth.errors import StorageError

#: seconds that a writer waits for another
PATIENCE = 30
#: PostgreSQL's name for the lock of those who give out items
_LOCK = 8_400_001
#: alone among writers, and on disk when it is done where the server or the database has it otherwise
_ALONE = (
    f"SELECT pg_advisory_xact_lock({_LOCK}), CASE WHEN current_setting('synchronous_commit') = 'off' "
    "THEN set_config('synchronous_commit', 'on', true) END"
)
#: items that one statement removes: databases limit the parameters of one
SLICE = 500


class Book:
    """An open database, by path or SQLAlchemy URL; StorageError where it cannot be opened."""

    def __init__(self, place: str | Path) -> None:
        self.url = url_of(place)
        self.shown = shown(self.url)
        try:
            self.engine = _engine(self.url)
            Base.metadata.create_all(self.engine)
        except (SQLAlchemyError, OSError, ImportError) as error:
            raise StorageError(f"{self.shown}: no database can be opened there: {_first_line(error)}") from error

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only looks."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose changes are on disk when the block is left, alone among writers."""
        engine = self.engine.execution_options(writing=True)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            if self.engine.dialect.name == "postgresql":
                session.execute(text(_ALONE))
            yield session

    def close(self) -> None:
        self.engine.dispose()

    def setting(self, name: str) -> Any:
        with self.reading() as session:
            found = session.get(Setting, name)
            return None if found is None else found.value

    def answered(self) -> set[str]:
        """Items that somebody has answered, as `begin` will not give them up."""
        with self.reading() as session:
            return _answered(session)

    def begin(self, form: Form, items: Sequence[Item], seed: int) -> None:
        """Enter the form and the items, and take out those that are no longer asked about.

        StorageError where answers to something else are kept here already.
        """
        with self.writing() as session:
            _settle(session, "form", dump(form), self.shown)
            if session.get(Setting, "secret") is None:
                session.add(Setting(name="secret", value=secrets.token_hex(32)))
            known = {item.id: item.digest for item in session.scalars(select(Shown))}
            for item in items:
                if known.get(item.id, item.digest()) != item.digest():
                    raise StorageError(
                        f"{self.shown}: item {item.id} shows another text than when it was entered; "
                        "keep these answers and set `store` to a new database"
                    )
            _leave_out(session, {item.id for item in items}, self.shown)
            session.add_all(_entry(item, seed) for item in items if item.id not in known)


def _settle(session: Session, name: str, value: Any, url: str) -> None:
    """Keep a setting for good once there are answers."""
    found = session.get(Setting, name)
    if found is None:
        session.add(Setting(name=name, value=value))
    elif found.value != value:
        if session.scalar(select(Answer.id).limit(1)) is not None:
            raise StorageError(f"{url} holds answers to another {name}; set `store` to a new database")
        found.value = value


def _leave_out(session: Session, asked: set[str], url: str) -> None:
    """Remove items that are not `asked` about; attention checks stay, as settings alone say whether to give them.

    Answers to work are never given up. A known item may be left out when it has answers, as one that proved wrong.
    """
    entered = {name: kind for name, kind in session.execute(select(Shown.id, Shown.kind)) if kind != ATTENTION}
    answered = _answered(session)
    left = {name: kind for name, kind in entered.items() if name not in asked}
    if kept := [name for name, kind in left.items() if kind == WORK and name in answered]:
        raise StorageError(
            f"{url}: {len(kept)} items with answers, such as {kept[0]}, are none of this campaign; take them into "
            "`items` again, or keep these answers and set `store` to a new database"
        )
    for name, kind in entered.items():
        if kind != WORK and name in answered:
            session.execute(update(Shown).where(Shown.id == name).values(kind=KNOWN if name in asked else RETIRED))
    gone = [name for name in left if name not in answered]
    for start in range(0, len(gone), SLICE):
        part = gone[start : start + SLICE]
        session.execute(delete(Assignment).where(Assignment.item_id.in_(part)))
        session.execute(delete(Shown).where(Shown.id.in_(part)))


def _answered(session: Session) -> set[str]:
    return set(session.scalars(select(Assignment.item_id).join(Answer, Answer.assignment_id == Assignment.id)))


def _entry(item: Item, seed: int) -> Shown:
    return Shown(
        id=item.id, kind=item.kind, place=row_seed(seed, item.id, "place") >> 32, prompt=item.prompt,
        answers=[list(answer) for answer in item.answers], root=item.root, split=item.split,
        expected=item.expected, digest=item.digest(),
    )  # fmt: skip


def url_of(place: str | Path) -> str:
    """An SQLAlchemy URL; a path is one of SQLite."""
    text = str(place)
    return text if "://" in text else f"sqlite:///{Path(text).expanduser().resolve()}"


def shown(url: str) -> str:
    """A database's URL as it may be told: without the password."""
    try:
        found = make_url(url)
    except ArgumentError:  # none that can be read: what may be an account is left out
        return url.rpartition("@")[2]
    return url if found.password is None else found._replace(password=None).render_as_string()


def _engine(url: str) -> Engine:
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = create_engine(url, pool_pre_ping=True)  # a server that was started again has none of our connections
    except (ArgumentError, NoSuchModuleError) as error:
        raise StorageError(f"{shown(url)}: is no URL of a database: {error}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _durable)
        event.listen(engine, "begin", _begin)
    return engine


def _durable(connection: Any, _: Any) -> None:
    """A commit returns when its bytes are on disk; sqlite3 itself begins no transaction."""
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={PATIENCE * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # who means to write takes the lock at once: a reader that turns writer could only fail
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writing") else "BEGIN")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def now() -> float:
    """Seconds since 1970."""
    return time.time()
