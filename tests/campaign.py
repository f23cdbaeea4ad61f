"""A campaign for tests: items on disk, the application over them, and people who use it as a browser would."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from fastapi.testclient import TestClient

from tilth.annotate import people
from tilth.annotate.app import create_app
from tilth.annotate.book import Book
from tilth.annotate.config import Annotation
from tilth.annotate.items import campaign

FIELD = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')
LINK = re.compile(r'value="(https?://[^"]*?(/(?:join|login)/[\w-]+))"')


def write_items(path: Path, count: int, **extra: Any) -> Path:
    """A file of prompts with the answers of two models."""
    lines = [
        {"id": f"q{n}", "prompt": f"Question {n}?", "answers": {"red": f"Red says {n}.", "blue": f"Blue says {n}."}}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps({**line, **extra}) + "\n" for line in lines))
    return path


class Campaign:
    """The application in this process, over a database on disk."""

    #: the database of a campaign over a file of items
    place: ClassVar[Callable[[Path], str | Path]] = staticmethod(lambda source: source.with_suffix(".db"))

    def __init__(self, source: Path, **settings: Any) -> None:
        self.settings = Annotation.model_validate({"checks": {"attention_every": 0}, **settings})
        self.book = Book(self.place(source))
        self.form, self.items = campaign(source, self.settings, self.book.answered)
        self.book.begin(self.form, self.items, self.settings.seed)
        self.app = create_app(self.book, self.settings, self.form)
        with self.book.writing() as session:
            self.manager_token = people.manager(session)

    def browser(self) -> Browser:
        return Browser(TestClient(self.app, base_url="http://localhost"))

    def manager(self) -> Browser:
        browser = self.browser()
        browser.send(f"/login/{self.manager_token}", "/login", token=self.manager_token)
        return browser

    def annotator(self, name: str, manager: Browser | None = None) -> Browser:
        """Somebody who was invited and has joined."""
        invited = (manager or self.manager()).send("/manage", "/manage/invite", note=name)
        browser = self.browser()
        path = LINK.search(invited.text).group(2)
        browser.send(path, path, name=name)
        return browser


class Browser:
    """One person's browser: it looks at a page, fills the form of a path and sends it."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def get(self, path: str) -> Any:
        return self.client.get(path)

    def fields(self, page: str, action: str) -> dict[str, str]:
        """The hidden fields of the form that goes to `action`."""
        form = next(part for part in page.split("<form ") if f'action="{action}"' in part.partition(">")[0])
        return dict(FIELD.findall(form.partition("</form>")[0]))

    def send(self, look_at: str, action: str, **values: Any) -> Any:
        hidden = self.fields(self.get(look_at).text, action)
        return self.client.post(action, data={**hidden, **values})

    def answer(self, **values: Any) -> Any:
        return self.send("/work", "/answer", **values)

    def prefer(self, model: str) -> Any:
        """Choose the answer that says what this model says, wherever it is shown; "tie" for neither."""
        page = self.get("/work").text
        side = (
            model
            if model == "tie"
            else "A"
            if page.index("Answer A") < _says(page, model) < page.index("Answer B")
            else "B"
        )
        return self.client.post("/answer", data={**self.fields(page, "/answer"), "choice": side})


def _says(page: str, model: str) -> int:
    return page.index(f"{model.capitalize()} says")
