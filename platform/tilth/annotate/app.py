"""The web application: a site, its middleware, and what every page needs. The pages are in `pages` and `managing`."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tilth.annotate import people
from tilth.annotate.book import Book, now
from tilth.annotate.config import Annotation, in_url
from tilth.annotate.forms import Form
from tilth.annotate.guard import COOKIE, GUESSES, HEADERS, LARGEST, Limiter, form_token, is_ours, same_origin
from tilth.annotate.quality import figure
from tilth.annotate.tables import Person
from tilth.annotate.text import shown

Fields = Mapping[str, list[str]]


@dataclass
class Site:
    """What all requests share."""

    book: Book
    campaign: Annotation
    form: Form
    secret: str
    templates: Environment
    #: browsers that were seen to be signed in, by the hash of their cookie
    known: set[str] = field(default_factory=set)
    guesses: Limiter = field(default_factory=lambda: Limiter(GUESSES))

    def __post_init__(self) -> None:
        self.requests = Limiter(self.campaign.serving.per_minute)

    @property
    def secure(self) -> bool:
        """Whether browsers reach it by TLS, so that the cookie is for TLS alone."""
        return self.campaign.serving.tls

    def base(self, request: Request) -> str:
        """What links to give away begin with."""
        return self.campaign.serving.public or str(request.base_url).rstrip("/")


def create_app(book: Book, campaign: Annotation, form: Form) -> FastAPI:
    """The application over an open database whose items are entered."""
    from tilth.annotate import managing, pages

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.site = Site(book, campaign, form, book.setting("secret"), _templates(campaign))
    app.include_router(pages.router)
    app.include_router(managing.router)
    app.mount("/static", StaticFiles(packages=[("tilth.annotate", "static")]), name="static")
    app.add_exception_handler(StarletteHTTPException, _failed)
    app.middleware("http")(_guarded)
    # a name that is not ours is another site's, pointed at this machine to read what it serves
    hosts = ["localhost", "127.0.0.1", *map(in_url, ("::1", campaign.serving.host, *campaign.serving.reached))]
    everywhere = campaign.serving.host in ("0.0.0.0", "::") and not campaign.serving.reached
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["*"] if everywhere else hosts)
    return app


def _templates(campaign: Annotation) -> Environment:
    loader = PackageLoader("tilth.annotate", "templates")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters["shown"] = lambda text: shown(text, campaign.format)
    found.filters["markdown"] = shown
    found.filters["figure"] = figure
    return found


async def _guarded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    site = site_of(request)
    visit = people.hashed(request.cookies.get(COOKIE, ""))
    # a cookie that nobody is signed in with could be another one each time
    name = f"visit {visit}" if visit in site.known else f"address {address(request)}"
    if not request.url.path.startswith("/static") and not site.requests.allow(name):
        response: Response = page(request, "message.html.j2", {"title": "Too many requests",
            "words": "Please wait a minute and go on."}, status=429)  # fmt: skip
        response.headers["Retry-After"] = "60"
    else:
        response = await call_next(request)
    # the browser too forgets its cookie in time
    if (cookie := getattr(request.state, "came", None)) and "set-cookie" not in response.headers:
        remember(response, site, cookie)
    response.headers.update(HEADERS)
    if not request.url.path.startswith("/static"):
        response.headers["Cache-Control"] = "no-store"
    return response


def site_of(request: Request) -> Site:
    found: Site = request.app.state.site
    return found


def address(request: Request) -> str:
    return request.client.host if request.client else "?"


def page(request: Request, name: str, values: Mapping[str, Any], status: int = 200, cookie: str = "") -> HTMLResponse:
    """A rendered page; `cookie` is set anew, and a browser that has none is given one for its forms."""
    site = site_of(request)
    given = cookie or request.cookies.get(COOKIE) or secrets.token_urlsafe(32)
    token = form_token(site.secret, given)
    text = site.templates.get_template(name).render({"person": None, **values, "csrf": token})
    response = HTMLResponse(text, status)
    if given != request.cookies.get(COOKIE):
        remember(response, site, given)
    return response


def remember(response: Response, site: Site, cookie: str) -> None:
    """Give the browser its cookie: no script reads it and no other site's form sends it."""
    response.set_cookie(COOKIE, cookie, max_age=people.IDLE, httponly=True, secure=site.secure, samesite="lax")


def go(where: str) -> RedirectResponse:
    """Ask the browser to look elsewhere, so that a reload sends no form again."""
    return RedirectResponse(where, 303)


async def posted(request: Request) -> Fields:
    """The fields of a form that one of our own pages sent from this browser; 403 for any other."""
    site = site_of(request)
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > LARGEST:
        raise HTTPException(413, "The form is too large.")
    async with request.form(max_files=0, max_fields=100) as form:
        fields = {name: [str(value) for value in form.getlist(name)] for name in form}
    token = "".join(fields.get("csrf", ()))
    ours = is_ours(site.secret, request.cookies.get(COOKIE, ""), token)
    if not same_origin(request.headers, site.campaign.serving.public) or not ours:
        raise HTTPException(403, "This page is out of date. Go back, load it again and send it once more.")
    return fields


def signed_in(request: Request) -> Person:
    """Who asks; who is not signed in is sent to do so."""
    site, cookie = site_of(request), request.cookies.get(COOKIE, "")
    with site.book.reading() as session:
        visit = people.visit(session, cookie)
    if visit is None:
        raise HTTPException(303, "Please sign in.", {"Location": "/login"})
    site.known.add(people.hashed(cookie))
    if visit.seen < now() - people.FRESH:
        with site.book.writing() as session:
            people.came(session, cookie)
        request.state.came = cookie
    return visit.person


def managing(person: Annotated[Person, Depends(signed_in)]) -> Person:
    """Who asks, if it is the manager."""
    if not person.manager:
        raise HTTPException(403, "This page is for the manager of the campaign.")
    return person


def annotating(person: Annotated[Person, Depends(signed_in)]) -> Person:
    """Who asks, unless it is the manager: who sees everybody's answers is not to be counted among them."""
    if person.manager:
        raise HTTPException(403, "The manager sees all answers and gives none. To judge too, invite yourself on the "
                                 "manager's page and open the invitation in another browser.")  # fmt: skip
    return person


Posted = Annotated[Fields, Depends(posted)]
SignedIn = Annotated[Person, Depends(signed_in)]
Annotator = Annotated[Person, Depends(annotating)]
Manager = Annotated[Person, Depends(managing)]


async def _failed(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, StarletteHTTPException) else 500
    if isinstance(error, StarletteHTTPException) and error.headers and "Location" in error.headers:
        return go(error.headers["Location"])
    words = str(error.detail) if isinstance(error, StarletteHTTPException) else "Something failed."
    titles = {403: "Not allowed", 404: "Not found", 413: "Too large", 429: "Too many requests"}
    return page(request, "message.html.j2", {"title": titles.get(status, "Not possible"), "words": words}, status)
