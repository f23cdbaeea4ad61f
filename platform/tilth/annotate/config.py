"""What `tilth annotate` asks people, about which texts, and how it is served: the YAML file of a campaign. Light."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from tilth import yaml12
from tilth.annotate.forms import Form
from tilth.config import Component
from tilth.errors import Problem, RecipeError
from tilth.problems import problems


class Items(Component):
    """Which rows of a run are judged.

    Of an evaluation they are the answers of its models to the same rows, of a dataset its completions, preference
    pairs, last turns of chats or texts. A file of items holds one JSON object a line: {prompt, answers: {model: text}}
    or a row of a dataset, and with `expected` it is a known-answer item.
    """

    stage: str | None = Field(None, description="Stage of the run; without it the last one that holds answers.")
    models: tuple[str, ...] = Field((), description="Models of an evaluation whose answers are shown; none: all.")
    answer: str | None = Field(None, description="Dotted path to a model's answer, such as meta.answers.0.")
    split: str | None = Field(None, pattern="^(train|validation|test)$", description="Only rows of this split.")
    limit: int | None = Field(None, ge=1, description="Rows at most, drawn by the campaign's seed.")


class Checks(Component):
    """Items whose right answer is known, mixed among the others to see who reads."""

    attention_every: int = Field(20, ge=0, description="An instruction to follow comes about every so many; 0: never.")
    known: str | None = Field(None, description="JSON Lines of items with `expected`, the right answer.")
    known_every: int = Field(15, ge=0, description="A known-answer item comes about every so many items.")


class Serving(Component):
    """Where the application listens. Beyond this machine it needs TLS, or a word that it may do without."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8400, ge=0, le=65535, description="Port; 0: any free one.")
    certificate: str | None = Field(None, description="TLS certificate chain (PEM).")
    key: str | None = Field(None, description="TLS private key (PEM).")
    plain_http: bool = Field(False, description="Beyond this machine without TLS, as behind a proxy that has it.")
    names: tuple[str, ...] = Field((), description="Host names under which it is reached, besides its address.")
    public_url: str | None = Field(
        None,
        description="Where people reach it through a proxy, as https://judge.example.org: links begin with it. The "
        "proxy passes this host on, or `names` has the one that it sends instead.",
    )
    proxies: tuple[str, ...] = Field(
        (), description="Addresses or networks of proxies, whose word is taken for whose request it is."
    )
    per_minute: int = Field(240, ge=10, description="Requests of one person, or of one address, in a minute.")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return _loopback(self.host)

    @property
    def public(self) -> str | None:
        """`public_url` as browsers call the origin of its pages: in small letters, without the port that is usual."""
        if self.public_url is None:
            return None
        found = urlsplit(self.public_url)
        usual = {"http": 80, "https": 443}.get(found.scheme)
        host = found.netloc.lower().removesuffix(f":{usual}")
        return f"{found.scheme}://{host}"

    @property
    def reached(self) -> tuple[str, ...]:
        """All names under which it is reached."""
        name = urlsplit(self.public_url).hostname if self.public_url else None
        return (*self.names, *([name] if name else []))

    @property
    def tls(self) -> bool:
        """Whether browsers speak TLS with it, or with the proxy before it."""
        return self.certificate is not None or (self.public or "").startswith("https://")

    def check(self) -> list[Problem]:
        return [*self._locally(), *self._behind()]

    def _behind(self) -> Iterator[Problem]:
        """What is wrong with the proxy that is told of."""
        if self.public_url is not None and (wrong := _no_origin(self.public_url)):
            yield Problem("public_url", wrong, "write where it is reached, such as https://judge.example.org")
        elif (self.public or "").startswith("http://") and not self.plain_http and not _loopback(self.reached[-1]):
            what = f"{self.public} is reached from other machines, where tokens would travel unencrypted"
            yield Problem("public_url", what, "write https:// and give the proxy a certificate, or plain_http: true")
        for proxy in self.proxies:
            if not _names_some(proxy):
                mend = "name those that pass requests on, such as 10.0.0.7 or 10.0.0.0/24"
                yield Problem("proxies", f"{proxy!r} is no address of a proxy or a network of them", mend)

        if self.proxies and self.public_url is None:
            what = "proxies pass requests on to here, so that pages do not know their own address"
            yield Problem("public_url", what, "write where it is reached, such as https://judge.example.org")

    def _locally(self) -> list[Problem]:
        found = []
        if (self.certificate is None) != (self.key is None):
            found.append(Problem("certificate", "certificate and key belong together", "give both or none"))
        if not self.loopback and self.certificate is None and not self.plain_http:
            what = f"{self.host} is reached from other machines, where tokens would travel unencrypted"
            mend = "give certificate and key, or behind a proxy plain_http: true and public_url"
            found.append(Problem("host", what, mend))
        for name in ("certificate", "key"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                found.append(Problem(name, f"no such file: {path}", "check the path"))
        return found


def in_url(host: str) -> str:
    """As it stands in a URL and in a request: an address of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _no_origin(url: str) -> str | None:
    """What keeps a URL from being one that pages lie right below; None where nothing does."""
    try:
        found = urlsplit(url)
        named = found.scheme in ("http", "https") and found.hostname and found.port != 0
    except ValueError:  # a port that is no number
        named = False
    if not named or "@" in url:
        return f"{url!r} is no URL of a host"
    if found.path not in ("", "/") or found.query or found.fragment:
        return f"{url!r} has a path, but pages lie right below the host"
    return None


def _names_some(text: str) -> bool:
    """Whether it is an address or a network, and not all there are."""
    try:
        return ipaddress.ip_network(text).prefixlen > 0
    except ValueError:
        return False


class Annotation(Component):
    """One campaign: the question, the items, how many people see each, and where answers are kept."""

    form: Form | None = Field(None, description="What is asked; none: pairwise for two answers, else direct.")
    instructions: str = Field("", max_length=20_000, description="Shown above the first items, as Markdown.")
    items: Items = Field(default_factory=Items, description="What is judged.")
    overlap: int = Field(3, ge=1, description="How many people judge each item.")
    checks: Checks = Field(default_factory=Checks, description="Attention checks and known-answer items.")
    format: Literal["markdown", "text"] = Field("markdown", description="How prompts and answers are shown.")
    serving: Serving = Field(default_factory=Serving, description="Where the application listens.")
    store: str | None = Field(None, description="Database of the answers: a path or an SQLAlchemy URL.")
    lease_minutes: int = Field(60, ge=1, description="An item that was opened and left goes to others after this.")
    seed: int = Field(0, ge=0, description="Seed of the order of items and of A and B.")


def load_annotation(path: str | Path | None, port: int | None = None) -> Annotation:
    """The checked campaign of a YAML file, or the default one; RecipeError with every problem found."""
    data, lines = yaml12.parse(_text(path), str(path)) if path is not None else ({}, {})
    serving = data.get("serving") or {}
    if port is not None and isinstance(serving, dict):  # what else it may be is told below
        data = {**data, "serving": {**serving, "port": port}}
    try:
        annotation = Annotation.model_validate(data)
        found = [*annotation.check()]
        for where, child in annotation.children():
            found += [Problem(f"{where}.{p.where}", p.what, p.mend) for p in child.check()]
    except ValidationError as error:
        found = problems(error, data, Annotation)
    if found:
        raise RecipeError([Problem(_place(path, p.where, lines), p.what, p.mend) for p in found])
    return annotation


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(str(path), f"cannot be read: {error}")]) from error


def _place(path: str | Path | None, where: str, lines: dict[str, int]) -> str:
    return f"{path}:{lines[where]}: {where}" if where in lines else where
