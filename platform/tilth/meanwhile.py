"""What is done beside other work, in threads that end with it: again and again, or before it is asked for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


@contextmanager
def repeated(work: Callable[[], bool | None], wait: Callable[[], float], name: str) -> Iterator[None]:
    """Within: `work` is done each time that as many seconds are over as `wait` says, until it returns False.

    The thread is called `tilth-` and `name`. It is over when the block is left, whatever ended that.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(wait()):
            if work() is False:
                return

    thread = threading.Thread(target=repeat, daemon=True, name=f"tilth-{name}")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def ahead(
    work: Callable[[Item], Made], items: Iterable[Item], most: int, weight: Callable[[Item], float], room: float
) -> Iterator[tuple[Item, Made]]:
    """Each item with what `work` makes of it, in order, while that of the next ones is under way in threads.

    At most `most` are, and so many that their `weight` is `room` together, but one at least. What is raised of an item
    is raised where it would have been given.
    """
    begun: deque[tuple[Item, Future[Made]]] = deque()
    held = 0.0
    with ThreadPoolExecutor(most, "tilth-ahead") as pool:
        try:
            for item in items:
                while begun and (len(begun) >= most or held + weight(item) > room):
                    held -= weight(begun[0][0])
                    first, future = begun.popleft()
                    yield first, future.result()
                begun.append((item, pool.submit(work, item)))
                held += weight(item)
            while begun:
                first, future = begun.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
