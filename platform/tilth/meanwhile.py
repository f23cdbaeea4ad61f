"""What is done again and again beside a block of code, in a thread that ends with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
