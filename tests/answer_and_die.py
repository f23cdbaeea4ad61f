"""Answers one item after another and says the key of each answer once it is committed; a test kills it on the way."""

from __future__ import annotations

import sys

from sqlalchemy import select

from tilth.annotate import work
from tilth.annotate.book import Book
from tilth.annotate.config import Annotation
from tilth.annotate.tables import Person

book, number = Book(sys.argv[1]), 0
while True:
    number += 1
    with book.writing() as session:
        person = session.scalars(select(Person).where(~Person.manager)).one()
        given = work.take(session, person, Annotation())
        work.answer(session, person, given, f"answer-{number}", {"preferred": "red", "choice": "A"})
    print(f"answer-{number}", flush=True)
