"""`tilth annotate`: a campaign over a run or a file, served until it is stopped."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from tilth import ui
from tilth.annotate import people
from tilth.annotate.app import create_app
from tilth.annotate.book import Book
from tilth.annotate.config import Annotation, Serving, in_url, load_annotation
from tilth.annotate.forms import Form
from tilth.annotate.items import campaign
from tilth.annotate.judgements import Judgement, judgements
from tilth.annotate.quality import figures
from tilth.errors import StorageError
from tilth.meanwhile import repeated
from tilth.storage import Store

#: what the report of a run reads, below the run
RESULTS = "annotation/{name}.json"
#: so long after an answer its figures are left for the report, at the latest
KEEP_SECONDS = 60.0


def annotate(source: str, file: str | None, port: int | None) -> dict[str, Any]:
    """Serve a campaign until SIGINT or SIGTERM; its figures as they are then.

    A run's report finds them while people still answer, too, and where the server is killed.
    """
    settings = load_annotation(file, port)
    name = Path(file).stem if file else "answers"
    place = settings.store or _beside(source, name)
    form, items = campaign(source, settings, lambda: _answered(place))
    book = Book(place)
    try:
        book.begin(form, items, settings.seed)
        with book.writing() as session:
            token = people.manager(session)
        with kept(book, source, name):
            _serve(book, settings, form, token)
        with book.reading() as session:
            found = figures(judgements(session))
    finally:
        book.close()
    _keep(source, name, found)
    return {"store": book.shown, **found}


def _answered(place: str) -> set[str]:
    """Items that have answers there already."""
    book = Book(place)
    try:
        return book.answered()
    finally:
        book.close()


def _beside(source: str, name: str) -> str:
    """Where answers are kept unless it is said: in the run, or beside the file of items."""
    if Path(source).is_file():
        return f"{source}.{name}.db"
    store = Store.at(source)
    if not store.is_local:
        raise StorageError(f"{source} is no local directory; set `store` to a path or a database's URL")
    return str(store.local(f"annotation/{name}.db"))


def kept(book: Book, source: str, name: str, seconds: float = KEEP_SECONDS) -> AbstractContextManager[None]:
    """Within: the figures are left for the report every so often, if anything was answered meanwhile."""
    known: list[Judgement] = []

    def keep() -> None:
        nonlocal known
        try:
            with book.reading() as session:
                found = judgements(session)
            if found != known:
                _keep(source, name, figures(found))
                known = found
        except (StorageError, SQLAlchemyError) as error:
            ui.reporter().say(f"the figures of what was answered could not be kept for the report: {error}")

    return repeated(keep, lambda: seconds, "figures")


def _keep(source: str, name: str, found: dict[str, Any]) -> None:
    """Leave the figures where the run's report finds them; none of no answer, but in place of earlier ones."""
    if Path(source).is_file():
        return
    store, place = Store.at(source), RESULTS.format(name=name)
    if found["answers"] or store.exists(place):
        store.write_json(place, found)


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    link = ""
    #: where it is reached through a proxy
    public: str | None = None

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if not self.servers:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        host = "localhost" if self.config.host in ("127.0.0.1", "localhost", "0.0.0.0", "::", "::1") else host
        scheme = "https" if self.config.is_ssl else "http"
        link = f"{self.public or f'{scheme}://{in_url(host)}:{port}'}{self.link}"
        ui.reporter().say(f"manage the campaign at {link}", event="serving", url=link)


def listening(app: Any, where: Serving) -> uvicorn.Config:
    """How uvicorn serves the application; only proxies that are named say whose request it is."""
    return uvicorn.Config(
        app, host=where.host, port=where.port, log_level="warning", access_log=False, server_header=False,
        ssl_certfile=where.certificate, ssl_keyfile=where.key,
        proxy_headers=bool(where.proxies), forwarded_allow_ips=list(where.proxies),
    )  # fmt: skip


def _serve(book: Book, settings: Annotation, form: Form, token: str) -> None:
    server = _Server(listening(create_app(book, settings, form), settings.serving))
    server.link, server.public = f"/login/{token}", settings.serving.public
    # uvicorn stops at a signal and then raises it once more, before anything is written down
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
