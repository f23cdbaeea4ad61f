"""The tables of a campaign: who takes part, what they are shown, what they answered. Times are seconds since 1970."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """All tables."""


class Setting(Base):
    """What belongs to the campaign as a whole: its form, its secret."""

    __tablename__ = "setting"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)


class Shown(Base):
    """An item, as `tilth.annotate.items.Item`; `place` is its place in the campaign's random order."""

    __tablename__ = "item"
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(index=True)
    place: Mapped[int] = mapped_column(index=True)
    prompt: Mapped[str]
    answers: Mapped[Any] = mapped_column(JSON)
    root: Mapped[str]
    split: Mapped[str]
    expected: Mapped[Any] = mapped_column(JSON)
    digest: Mapped[str]


class Person(Base):
    """An account. Its token is stored as a hash; `left_out` answers count for nothing and are kept."""

    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    manager: Mapped[bool] = mapped_column(default=False)
    token: Mapped[str] = mapped_column(unique=True)
    joined: Mapped[float]
    left_out: Mapped[bool] = mapped_column(default=False)


class Invitation(Base):
    """A link by which one person joins, once."""

    __tablename__ = "invitation"
    token: Mapped[str] = mapped_column(primary_key=True)
    note: Mapped[str]
    created: Mapped[float]
    expires: Mapped[float]
    person_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))


class Visit(Base):
    """A signed-in browser; the cookie is stored as a hash."""

    __tablename__ = "visit"
    token: Mapped[str] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    seen: Mapped[float]
    person: Mapped[Person] = relationship(lazy="joined")


class Assignment(Base):
    """An item given to a person: `order` holds the places of its answers as they are shown."""

    __tablename__ = "assignment"
    __table_args__ = (UniqueConstraint("item_id", "person_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("item.id"), index=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), index=True)
    position: Mapped[int]
    order: Mapped[Any] = mapped_column(JSON)
    given: Mapped[float]
    item: Mapped[Shown] = relationship(lazy="joined")


class Answer(Base):
    """What a person answered. One that was undone stays, with the time at which it was withdrawn."""

    __tablename__ = "answer"
    __table_args__ = (
        # at most one answer of each assignment counts, whatever two tabs or two servers do at once
        Index(
            "one_answer", "assignment_id", unique=True,
            sqlite_where=text("withdrawn IS NULL"), postgresql_where=text("withdrawn IS NULL"),
        ),
    )  # fmt: skip
    id: Mapped[int] = mapped_column(primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"), index=True)
    key: Mapped[str] = mapped_column(unique=True)
    value: Mapped[Any] = mapped_column(JSON)
    seconds: Mapped[float]
    at: Mapped[float]
    withdrawn: Mapped[float | None]
    assignment: Mapped[Assignment] = relationship(lazy="joined")
