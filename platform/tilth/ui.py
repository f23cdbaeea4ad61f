"""What a person sees while work runs: rich progress on a terminal, plain lines in a log, JSON for machines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tilth.meanwhile import repeated

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

Advance = Callable[[int], None]
#: plain lines come no faster than this while work gets on, and as often as that while it does not
PLAIN_SECONDS = 10.0
SILENT_SECONDS = 30.0
#: of a table where no terminal says how wide it is
FILE_COLUMNS = 160


class Reporter:
    """Says things on stderr, in one of three manners; JSON events go to stdout."""

    def __init__(self, manner: Literal["auto", "plain", "json"] = "auto") -> None:
        self.json = manner == "json"
        self.rich = manner == "auto" and sys.stderr.isatty()

    @cached_property
    def console(self) -> Console:
        """Where tables and bars go. Loading rich takes longer than checking a recipe: only who needs it pays."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str, **event: Any) -> None:
        """One line; `event` is what a machine gets instead."""
        if self.json:
            print(json.dumps({"event": "message", "text": text, **event}, default=str), flush=True)
        elif "console" in vars(self):  # a bar may be on the screen: its console writes around it
            self.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, title: str, total: int | None, unit: str = "rows") -> Iterator[Advance]:
        """Progress over `total` units of work; call the yielded function with each amount done."""
        if self.rich:
            with self._bar() as bar:
                task = bar.add_task(title, total=total)
                yield lambda amount: bar.update(task, advance=amount)
            return
        counter = _Counter(self, title, total, unit)
        with counter.beating():
            yield counter.advance
        counter.report(final=True)

    def _bar(self) -> Progress:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        return Progress(TextColumn("{task.description}"), *columns, console=self.console)


class _Counter:
    """A line now and then, never one a row."""

    def __init__(self, reporter: Reporter, title: str, total: int | None, unit: str) -> None:
        self.reporter, self.title, self.total, self.unit = reporter, title, total, unit
        self.done = 0
        self.shown = -1
        self.start = self.last = time.monotonic()

    def advance(self, amount: int) -> None:
        self.done += amount
        if time.monotonic() - self.last >= PLAIN_SECONDS:
            self.report()

    def beating(self) -> AbstractContextManager[None]:
        """Within: a line also where nothing gets done, so that a log tells what takes long from what hangs."""

        def beat() -> None:
            if time.monotonic() - self.last >= SILENT_SECONDS:
                self.report()

        return repeated(beat, lambda: max(0.0, self.last + SILENT_SECONDS - time.monotonic()), "heartbeat")

    def report(self, final: bool = False) -> None:
        self.last = time.monotonic()
        seconds = self.last - self.start
        if final and (seconds < 1.0 or self.shown == self.done):
            return
        self.shown = self.done
        share = f"{self.done:,}" + (f" of {self.total:,}" if self.total else "")
        rate = f", {self.done / seconds:,.1f} {self.unit}/s" if self.done and seconds else ""
        text = f"{self.title}: {share} {self.unit}, {seconds:.0f} s{rate}"
        event = {"title": self.title, "done": self.done, "total": self.total, "seconds": seconds}
        self.reporter.say(text, **{**event, "event": "progress"})


_current: list[Reporter] = []


def reporter() -> Reporter:
    """The reporter in force; the command line sets its own."""
    if not _current:
        _current.append(Reporter())
    return _current[-1]


def use(new: Reporter) -> None:
    """Make `new` the reporter in force."""
    _current[:] = [new]


def answer(table: RenderableType) -> None:
    """A table or tree that was asked for, on stdout; in a file as wide as it likes, up to `FILE_COLUMNS`."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_COLUMNS
    Console(highlight=False, soft_wrap=True, width=wide).print(table)
