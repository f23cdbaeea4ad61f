"""Units of work in threads of this process, several at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable

from tilth.data.ledger import Record, Unit
from tilth.errors import TilthError

#: an interrupt that another thread sends wakes nobody who waits; it is seen after that time
LOOK_SECONDS = 0.2


def in_threads(
    commit: Callable[[Unit], Record], units: Iterable[Unit], count: int, halted: Callable[[], bool]
) -> Generator[Record]:
    """Records as units are committed, `count` at a time; once `halted` says so no other is begun.

    Nor is one after the first error, which is raised once those in flight are done: what they cost is not thrown away.
    It waits for no thread where it is interrupted or closed: they begin no other unit and go with the process.
    """
    left = iter(units)
    done: queue.SimpleQueue[Record | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()

    def work() -> None:
        try:
            while not (closed.is_set() or halted()) and (unit := next(left, None)) is not None:
                done.put(commit(unit))
            done.put(None)
        except TilthError as error:  # raised where the records are taken
            done.put(error)
        except BaseException as error:  # raised there too, or it would wait for this thread for ever
            done.put(error)
            raise

    for number in range(count):
        threading.Thread(target=work, name=f"tilth-unit-{number}", daemon=True).start()
    try:
        yield from _answers(done, count, closed)
    finally:
        closed.set()


def _answers(
    done: queue.SimpleQueue[Record | BaseException | None], running: int, closed: threading.Event
) -> Generator[Record]:
    error: BaseException | None = None
    while running:
        try:
            answer = done.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            continue
        if isinstance(answer, Record):
            yield answer
            continue
        running -= 1  # a thread has ended
        if answer is not None:
            closed.set()
            error = error or answer
    if error is not None:
        raise error
